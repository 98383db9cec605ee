"""A program that cannot become one graph, as one op: ``mpcompile::run_in_pieces``.

Python code that looks at values decides between ops, so no single graph holds the program. Dynamo
captures the graphs between such lines. Each gets its casts by the plan, and the lines themselves
run in eager PyTorch. For everything behind the capture the program is one op with a derivative: the
loss scale, clipping, accumulation, the gate of the update and checkpoints are those of any step.

Forward runs the program and keeps its autograd graph; backward goes back through it. Weights are
the masters, which the casts read. Buffers are put back, and their next values are results, so a
skipped step leaves them as they were.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CompileError
from mpcompile.lower.plain_calls import call_plainly
from mpcompile.pieces.runner import Returns, Runner
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.batch import Batch, structure_of
from mpcompile.program.capture import Forward, Input, InputKind
from mpcompile.program.casts import CAST
from mpcompile.program.random_state import drawn_again, random_state
from mpcompile.program.returned import TENSOR, ReturnedTree, stands_alone
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import Workload
from mpcompile.step.ways import Way
from mpcompile.torch_private.graphs import module_of
from mpcompile.torch_private.tracing import autograd_inside_an_op, flatten, keep_missing_gradients

_Tensors = Sequence[torch.Tensor]
_ITEM = operator.getitem

_keys = count()
_programs: weakref.WeakValueDictionary[int, ProgramInPieces] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class LastResult(ReturnedTree):
    """The tree of a program's last result, whose constants may be others in each run.

    Attributes:
        last: returns structure and leaves of the last result.
    """

    last: Callable[[], tuple[Any, Sequence[Any]]]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the result with these tensors."""
        structure, leaves = self.last()
        return ReturnedTree(structure, tuple(leaves))(tensors)


class ProgramInPieces:
    """A program in pieces, for one way and one shape of batch.

    Attributes:
        key: names it in a graph.
        runner: runs the program, also for other ways and shapes.
        way: what a run does to the model.
        like: fake tensors like the results: the loss, the next buffers, what is beside the loss.
        returned: fake tensors like the loss and what is beside it.

    Args:
        runner: see above.
        batch: gives the structure.
        like: fake tensors like the loss and what is beside it.
    """

    def __init__(self, runner: Runner, batch: Batch, like: _Tensors) -> None:
        self.key, self.runner, self.returned = next(_keys), runner, like
        model, optimizer = runner.workload.model, runner.workload.optimizer
        assert optimizer is not None
        self._weights = trained_weights(model, optimizer)
        written = tuple(n for n, _ in model.named_buffers() if n in runner.way.written)
        wide, narrow = (
            tuple(n for n in self._weights if n in names)
            for names in (runner.way.wide, runner.way.narrow)
        )
        self.way = Way(wide, narrow, written)
        self._buffers = dict(model.named_buffers())
        state = [
            runner.mode.from_tensor(self._buffers[name].detach(), static_shapes=True)
            for name in written
        ]
        self.like = (like[0], *state, *like[1:])
        self._batch = batch
        _programs[self.key] = self

    def forward(self, narrow: _Tensors, batch: _Tensors) -> list[torch.Tensor]:
        """Run the program; return the loss, the next buffers and the tensors beside the loss.

        Args:
            narrow: 16-bit copies of weights.
            batch: the tensors of the batch.
        """
        copies = dict(zip(self.way.narrow, narrow, strict=True))
        count = len(self.like) - 1 - len(self.way.written)
        arguments = self._batch.arguments([value.detach() for value in batch])
        made = self.runner.forward(
            arguments, self._buffers, self._weights, copies, self.way.written, count
        )
        return [made.value, *(made.buffers[name] for name in self.way.written), *made.beside]

    def backward(self, seed: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of the weights, then those of the copies, for the last run.

        Raises:
            OtherWay: the loss of this batch reaches other parameters, or other buffers are written.
        """
        return self.runner.backward(seed, self._weights, self.way)


def trained_weights(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return the parameters of a model that an optimizer trains, by name."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    return {
        name: value
        for name, value in model.named_parameters()
        if id(value) in held and value.requires_grad
    }


@torch.library.custom_op("mpcompile::run_in_pieces", mutates_args=())
def run_in_pieces(
    wide: Sequence[torch.Tensor],
    narrow: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    batch: Sequence[torch.Tensor],
    key: int,
) -> list[torch.Tensor]:
    """Run a program; see `ProgramInPieces.forward`."""
    with autograd_inside_an_op():
        return _forward(wide, narrow, others, batch, key)


def _forward(
    _: object, narrow: _Tensors, __: object, batch: _Tensors, key: int
) -> list[torch.Tensor]:
    return _programs[key].forward(narrow, batch)


@run_in_pieces.register_fake
def _(wide: Any, narrow: Any, others: Any, batch: Any, key: int) -> list[torch.Tensor]:
    del wide, narrow, others, batch
    # No `empty_like`: the tracer that asks has a fake mode of its own.
    return [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        for value in _programs[key].like
    ]


@torch.library.custom_op("mpcompile::run_in_pieces_backward", mutates_args=())
def run_in_pieces_backward(
    seed: torch.Tensor, reached: Sequence[torch.Tensor], key: int
) -> list[torch.Tensor]:
    """Return the gradients of the last run; see `ProgramInPieces.backward`."""
    with autograd_inside_an_op():
        return _backward(seed, reached, key)


def _backward(seed: torch.Tensor, _: object, key: int) -> list[torch.Tensor]:
    return _programs[key].backward(seed)


@run_in_pieces_backward.register_fake
def _(seed: torch.Tensor, reached: Sequence[torch.Tensor], key: int) -> list[torch.Tensor]:
    del seed, key
    return [value.new_empty(value.shape) for value in reached]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    wide, narrow, others, batch, ctx.key = inputs
    ctx.counts = len(wide), len(others), len(batch)
    ctx.save_for_backward(*wide, *narrow)


def _differentiate(ctx: Any, given: Any) -> tuple[Any, ...]:
    found = run_in_pieces_backward(given[0], list(ctx.saved_tensors), ctx.key)
    wide, others, batch = ctx.counts
    return list(found[:wide]), list(found[wide:]), [None] * others, [None] * batch, None


run_in_pieces.register_autograd(_differentiate, setup_context=_save)
call_plainly(torch.ops.mpcompile.run_in_pieces.default, _forward)
call_plainly(torch.ops.mpcompile.run_in_pieces_backward.default, _backward)


def program_in_pieces(
    workload: Workload, policy: Policy, why: CompileError, *, copies: bool = True
) -> Forward:
    """Run a program once in eager PyTorch, and return it as a graph of one op.

    The caller puts back what the program has changed.

    Args:
        workload: a program with a loss.
        policy: gives the wished precision of each op of its pieces.
        why: the reason why it is not one graph.
        copies: whether the update may keep 16-bit copies of weights.

    Raises:
        BadInput: the program fails, or its result is neither a loss nor a loss and anything.
    """
    keep_missing_gradients()
    model, optimizer = workload.model, workload.optimizer
    assert optimizer is not None
    buffers = dict(model.named_buffers())
    before = {name: value.clone() for name, value in buffers.items()}
    tensors, tree = _look(workload)
    weights = trained_weights(model, optimizer)
    found: Sequence[torch.Tensor | None] = [None] * len(weights)
    if tensors[0].requires_grad and weights:
        found = torch.autograd.grad(tensors[0], list(weights.values()), allow_unused=True)
    reached = tuple(n for n, value in zip(weights, found, strict=True) if value is not None)
    written = tuple(n for n, value in buffers.items() if not torch.equal(value, before[n]))
    _restore(buffers, before)
    runner = Runner(workload, policy, why, Way(reached, (), written), copies=copies)
    return _graph(runner, workload.batch, _noted(runner, workload.batch, tensors, tree))


def for_batch(runner: Runner, batch: Batch) -> Forward:
    """Return the graph of a program in pieces for a batch, on the way of the last run.

    For new shapes the program runs once in eager PyTorch; the caller puts back what it changes.
    """
    returns = runner.seen.get(_shapes(batch))
    if returns is None:
        buffers = dict(runner.workload.model.named_buffers())
        before = {name: value.clone() for name, value in buffers.items()}
        tensors, tree = _look(replace(runner.workload, batch=batch))
        _restore(buffers, before)
        returns = _noted(runner, batch, tensors, tree)
    return _graph(runner, batch, returns)


def _shapes(batch: Batch) -> Hashable:
    return structure_of(batch), tuple((value.shape, value.dtype) for value in batch)


def _restore(buffers: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in buffers.items():
            if not torch.equal(value, before[name]):
                value.copy_(before[name])


def _look(workload: Workload) -> tuple[list[torch.Tensor], ReturnedTree | None]:
    """Run a program in eager PyTorch; return its tensors, the loss first, and the tree of more.

    The next run draws the same random numbers again.
    """
    device = next(iter(workload.model.parameters())).device
    with torch.enable_grad(), drawn_again(random_state(device)):
        result = workload.run(workload.model, [value.detach() for value in workload.batch])
    leaves, structure = flatten(result)
    found = ReturnedTree(
        structure, tuple(TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    )
    try:
        alone = stands_alone(found)
    except ValueError as error:
        where = definition(workload.loss) or workload.origin
        advice = "return one 0-d FP32 tensor, or a pair of this tensor and any other value"
        raise BadInput(f"the loss returns {error}", where, advice) from None
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], None if alone else found


def _noted(runner: Runner, batch: Batch, tensors: _Tensors, tree: ReturnedTree | None) -> Returns:
    like: list[torch.Tensor] = [
        runner.mode.from_tensor(value.detach(), static_shapes=True) for value in tensors
    ]
    runner.seen[_shapes(batch)] = returns = Returns(like, tree)
    return returns


def _cast(graph: fx.Graph, weight: fx.Node, precision: Precision) -> fx.Node:
    """Add the cast of a weight, which the update will do."""
    dtype = getattr(torch, precision.value)
    cast = graph.call_function(CAST, (weight,), {"dtype": dtype})
    cast.meta["val"] = weight.meta["val"].to(dtype)
    return cast


def _graph(runner: Runner, batch: Batch, returns: Returns) -> Forward:
    """Return a program as a graph of one op."""
    model, mode = runner.workload.model, runner.mode
    program = ProgramInPieces(runner, batch, returns.like)
    graph, inputs = fx.Graph(), list[Input]()

    def placeholder(kind: InputKind, name: str, tensor: torch.Tensor) -> fx.Node:
        node = graph.placeholder(name.replace(".", "_"))
        inputs.append(Input(node.name, kind, name, tensor))
        node.meta["val"] = mode.from_tensor(inputs[-1].value, static_shapes=True)
        return node

    every = {n: placeholder(InputKind.PARAMETER, n, v) for n, v in model.named_parameters()}
    held = [placeholder(InputKind.BUFFER, n, v) for n, v in model.named_buffers()]
    given = [
        placeholder(InputKind.BATCH, f"batch.{index}", value) for index, value in enumerate(batch)
    ]
    way = program.way
    others = [every[name] for name in every if name not in {*way.wide, *way.narrow}]
    wide = [every[name] for name in way.wide]
    narrow = [_cast(graph, every[name], runner.policy.precision) for name in way.narrow]
    call = graph.call_function(
        torch.ops.mpcompile.run_in_pieces.default,
        (wide, narrow, [*others, *held], given, program.key),
    )
    call.meta["val"] = list(program.like)
    file, _, line = (definition(runner.workload.loss) or runner.workload.origin or "").rpartition(
        ":"
    )
    if file:
        call.meta["stack_trace"] = f'  File "{file}", line {line}, in loss'
    parts = []
    for index, value in enumerate(program.like):
        part = graph.call_function(_ITEM, (call, index))
        part.meta = {**call.meta, "val": value}
        parts.append(part)
    graph.output((*parts[1:], parts[0]))
    tree = returns.tree
    return Forward(
        module_of(graph),
        tuple(inputs),
        program.way.written,
        None if tree is None else LastResult(tree.structure, tree.leaves, runner.last_result),
        in_pieces=program,
    )
