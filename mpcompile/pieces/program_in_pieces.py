"""A program that cannot become one graph, as one op: ``mpcompile::run_in_pieces``.

Python code that looks at values decides between ops, so no single graph holds the program. Dynamo
captures the graphs between such lines. Each gets its casts by the plan, and the lines themselves
run in eager PyTorch. For everything behind the capture the program is one op with a derivative: the
loss scale, clipping, accumulation, the gate of the update and checkpoints are those of any step.
The op takes tensors of any shape, so images and boxes may be others in each batch.

Forward runs the program and keeps its autograd graph; backward goes back through it. Weights are
the masters, which the casts read. Buffers are put back, and their next values are results, so a
skipped step leaves them as they were.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CompileError
from mpcompile.lower.plain_calls import call_plainly
from mpcompile.pieces.runner import Runner, returned
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.batch import Batch, structure_of
from mpcompile.program.capture import Forward, Input, InputKind
from mpcompile.program.casts import CAST
from mpcompile.program.random_state import drawn_again, random_state
from mpcompile.program.returned import TENSOR, ReturnedTree
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import Workload
from mpcompile.step.ways import Way
from mpcompile.torch_private.graphs import module_of
from mpcompile.torch_private.tracing import autograd_inside_an_op, keep_missing_gradients

_Tensors = Sequence[torch.Tensor]
_ITEM = operator.getitem

_keys = count()
_programs: weakref.WeakValueDictionary[int, ProgramInPieces] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class LastResult(ReturnedTree):
    """The tree of a program's last result, whose constants may be others in each run.

    Attributes:
        runner: knows the last result.
    """

    runner: Runner

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the result with these tensors."""
        structure, leaves = self.runner.last_result()
        return ReturnedTree(structure, tuple(leaves))(tensors)


class ProgramInPieces:
    """A program in pieces, for one way and batches of one number of tensors, of any shapes.

    Attributes:
        key: names it in a graph.
        runner: runs the program, also for other ways.
        way: what a run does to the model.
        like: fake tensors like the results: the loss, the next buffers, what is beside the loss.

    Args:
        runner: see above.
        batch: gives the structure, until `given` gets another one.
    """

    def __init__(self, runner: Runner, batch: Sequence[torch.Tensor]) -> None:
        self.key, self.runner = next(_keys), runner
        model, optimizer = runner.workload.model, runner.workload.optimizer
        assert optimizer is not None
        self._weights = trained_weights(model, optimizer)
        written = tuple(n for n, _ in model.named_buffers() if n in runner.way.written)
        wide, narrow = (
            tuple(n for n in self._weights if n in names)
            for names in (runner.way.wide, runner.way.narrow)
        )
        self.way = replace(runner.way, wide=wide, narrow=narrow, written=written)
        self._buffers = dict(model.named_buffers())
        state = [
            runner.mode.from_tensor(self._buffers[name].detach(), static_shapes=True)
            for name in written
        ]
        loss, *beside = runner.like[runner.way.beside]
        self.like = (loss, *state, *beside)
        self._batch = Batch((), structure_of(batch))
        _programs[self.key] = self

    def given(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Take the structure of the next run's batch, and return its tensors."""
        self._batch = Batch((), structure_of(batch))
        return list(batch)

    def forward(self, narrow: _Tensors, batch: _Tensors) -> list[torch.Tensor]:
        """Run the program; return the loss, the next buffers and the tensors beside the loss.

        Args:
            narrow: 16-bit copies of weights.
            batch: the tensors of the batch.
        """
        copies = dict(zip(self.way.narrow, narrow, strict=True))
        arguments = self._batch.arguments([value.detach() for value in batch])
        made = self.runner.forward(
            arguments, self._buffers, self._weights, copies, self.way.written
        )
        beside = list(made.beside or ())[: self.way.beside or 0]
        # If there are more or fewer than on this way, backward goes over to another one.
        missing = [made.value.clone() for _ in range((self.way.beside or 0) - len(beside))]
        state = [made.buffers[name] for name in self.way.written]
        return [made.value, *state, *beside, *missing]

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
    tensors, alone = _look(workload)
    weights = trained_weights(model, optimizer)
    found: Sequence[torch.Tensor | None] = [None] * len(weights)
    if tensors[0].requires_grad and weights:
        found = torch.autograd.grad(tensors[0], list(weights.values()), allow_unused=True)
    reached = tuple(n for n, value in zip(weights, found, strict=True) if value is not None)
    written = tuple(n for n, value in buffers.items() if not torch.equal(value, before[n]))
    _restore(buffers, before)
    way = Way(reached, (), written, None if alone else len(tensors) - 1)
    runner = Runner(workload, policy, why, way, copies=copies)
    runner.note(tensors)
    return for_batch(runner, workload.batch)


def _restore(buffers: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in buffers.items():
            if not torch.equal(value, before[name]):
                value.copy_(before[name])


def _look(workload: Workload) -> tuple[list[torch.Tensor], bool]:
    """Run a program in eager PyTorch; return its tensors, the loss first, and if it stands alone.

    The next run draws the same random numbers again.
    """
    device = next(iter(workload.model.parameters())).device
    with torch.enable_grad(), drawn_again(random_state(device)):
        result = workload.run(workload.model, [value.detach() for value in workload.batch])
    tensors, _, alone = returned(result, workload)
    return tensors, alone


def _cast(graph: fx.Graph, weight: fx.Node, precision: Precision) -> fx.Node:
    """Add the cast of a weight, which the update will do."""
    dtype = getattr(torch, precision.value)
    cast = graph.call_function(CAST, (weight,), {"dtype": dtype})
    cast.meta["val"] = weight.meta["val"].to(dtype)
    return cast


def for_batch(runner: Runner, batch: Sequence[torch.Tensor]) -> Forward:
    """Return a program as a graph of one op, on the way of the last run.

    Args:
        runner: runs the program.
        batch: the graph is for batches with as many tensors.
    """
    model, mode = runner.workload.model, runner.mode
    program = ProgramInPieces(runner, batch)
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
    return Forward(
        module_of(graph),
        tuple(inputs),
        program.way.written,
        None if way.beside is None else LastResult(None, (TENSOR,) * (1 + way.beside), runner),
        in_pieces=program,
    )
