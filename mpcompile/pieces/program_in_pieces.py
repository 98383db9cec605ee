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

import logging
import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, CompileError
from mpcompile.lower.lower import Backend
from mpcompile.lower.plain_calls import call_plainly
from mpcompile.pieces.breaks import Piece, piece_of, said
from mpcompile.pieces.dynamo_graph import compile_graph
from mpcompile.plan.policy import Policy
from mpcompile.program.capture import Forward, Input, InputKind
from mpcompile.program.returned import TENSOR, ReturnedTree, stands_alone
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import Workload
from mpcompile.torch_private.graphs import module_of
from mpcompile.torch_private.tensors import fake_mode
from mpcompile.torch_private.tracing import (
    autograd_inside_an_op,
    compile_pieces,
    flatten,
    keep_missing_gradients,
)

_Tensors = Sequence[torch.Tensor]
_ITEM = operator.getitem
_LOG = logging.getLogger("mpcompile")

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
    """A program that Dynamo compiles in pieces, and the autograd graph of its last run.

    Attributes:
        key: names it in a graph.
        pieces: what Dynamo has compiled so far, in order.
        backend: runs each piece; None: the default of the device.

    Args:
        workload: the program, run once on its batch by `program_in_pieces`.
        policy: gives the wished precision of each op.
        why: the reason why it is not one graph.
        reached: names of the parameters that the loss reaches.
        written: names of the buffers that the program writes.
        like: fake tensors like the results: the loss, the next buffers, what is beside the loss.
    """

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        why: CompileError,
        reached: Sequence[str],
        written: Sequence[str],
        like: _Tensors,
    ) -> None:
        self.key, self.pieces = next(_keys), list[Piece]()
        self.backend: Backend | None = None
        self.like, self._reached = tuple(like), tuple(reached)
        self._workload, self._policy, self._why = workload, policy, why
        assert workload.loss is not None
        parameters = dict(workload.model.named_parameters())
        buffers = dict(workload.model.named_buffers())
        self._trained = [(name, parameters[name]) for name in reached]
        self._others = [
            (name, value)
            for name, value in parameters.items()
            if value.requires_grad and name not in reached
        ]
        self._buffers = [buffers[name] for name in written]
        self._loss: torch.Tensor | None = None
        self._result: tuple[Any, Sequence[Any]] = None, ()
        self._before, self._said = list[torch.Tensor](), False
        self._run = compile_pieces(workload.loss, self._compile)
        _programs[self.key] = self

    def _compile(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        made, outcome = compile_graph(module, inputs, self._policy, self.backend)
        self.pieces.append(piece_of(module, outcome.casts, outcome.wide))
        return made

    def forward(self, batch: _Tensors) -> list[torch.Tensor]:
        """Run the program; return the loss, the next buffers and the tensors beside the loss."""
        self._put_back()
        self._before = [value.clone() for value in self._buffers]
        args, named = self._workload.batch.arguments([value.detach() for value in batch])
        result = self._run(self._workload.model, *args, **named)
        if not self._said:
            self._said = True
            _LOG.warning("%s", said(self.pieces, self._why.what))
        leaves, structure = flatten(result)
        self._loss, *beside = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        made = [self._loss, *self._buffers, *beside]
        if len(made) != len(self.like):
            raise CannotCapture(
                f"the program returns {len(beside)} tensors beside the loss, other than for the "
                "example batch",
                self._workload.origin,
                "return as many tensors for each batch",
            )
        kept = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._result = structure, kept
        return [value.detach().clone() for value in made]

    def last_result(self) -> tuple[Any, Sequence[Any]]:
        """Return structure and leaves of the last result, `TENSOR` for each tensor."""
        return self._result

    def _put_back(self) -> None:
        """Put buffers back after a run; not before backward, which may read what they are then."""
        with torch.no_grad():
            for value, old in zip(self._buffers, self._before, strict=False):
                value.copy_(old)
        self._before = []

    def backward(self, seed: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of the reached parameters for the last run.

        Raises:
            CannotCapture: the loss of this batch reaches other parameters than that of the example.
        """
        assert self._loss is not None
        loss, self._loss = self._loss, None
        every = [*self._trained, *self._others]
        weights = [value for _, value in every]
        try:
            found = torch.autograd.grad(loss, weights, seed, allow_unused=True)
        finally:
            self._put_back()
        for position, ((name, _), gradient) in enumerate(zip(every, found, strict=True)):
            if (gradient is None) == (position < len(self._trained)):
                how = "does not reach" if gradient is None else "reaches"
                raise CannotCapture(
                    f"the loss of this batch {how} {name}, other than that of the example batch",
                    self._workload.origin,
                    "compile with an example batch that takes the same way",
                )
        return [value.contiguous() for value in found[: len(self._trained)] if value is not None]


@torch.library.custom_op("mpcompile::run_in_pieces", mutates_args=())
def run_in_pieces(
    reached: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    batch: Sequence[torch.Tensor],
    key: int,
) -> list[torch.Tensor]:
    """Run a program; see `ProgramInPieces.forward`."""
    with autograd_inside_an_op():
        return _forward(reached, others, batch, key)


def _forward(_: object, __: object, batch: _Tensors, key: int) -> list[torch.Tensor]:
    return _programs[key].forward(batch)


@run_in_pieces.register_fake
def _(reached: Any, others: Any, batch: Any, key: int) -> list[torch.Tensor]:
    del reached, others, batch
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
    reached, others, batch, ctx.key = inputs
    ctx.counts = len(others), len(batch)
    ctx.save_for_backward(*reached)


def _differentiate(ctx: Any, given: Any) -> tuple[Any, ...]:
    found = run_in_pieces_backward(given[0], list(ctx.saved_tensors), ctx.key)
    others, batch = ctx.counts
    return list(found), [None] * others, [None] * batch, None


run_in_pieces.register_autograd(_differentiate, setup_context=_save)
call_plainly(torch.ops.mpcompile.run_in_pieces.default, _forward)
call_plainly(torch.ops.mpcompile.run_in_pieces_backward.default, _backward)


def program_in_pieces(workload: Workload, policy: Policy, why: CompileError) -> Forward:
    """Run a program once in eager PyTorch, and return it as a graph of one op.

    The caller puts back what the program has changed.

    Args:
        workload: a program with a loss.
        policy: gives the wished precision of each op of its pieces.
        why: the reason why it is not one graph.

    Raises:
        BadInput: the program fails, or its result is neither a loss nor a loss and anything.
    """
    keep_missing_gradients()
    model, where = workload.model, definition(workload.loss) or workload.origin
    buffers = dict(model.named_buffers())
    before = {name: value.clone() for name, value in buffers.items()}
    with torch.enable_grad():
        result = workload.run(model, [value.detach() for value in workload.batch])
    leaves, structure = flatten(result)
    found = ReturnedTree(
        structure, tuple(TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    )
    loss, *beside = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    try:
        alone = stands_alone(found)
    except ValueError as error:
        advice = "return one 0-d FP32 tensor, or a pair of this tensor and any other value"
        raise BadInput(f"the loss returns {error}", where, advice) from None
    parameters = {n: value for n, value in model.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    reached = [n for n, value in zip(parameters, gradients, strict=True) if value is not None]
    written = [n for n, value in buffers.items() if not torch.equal(value, before[n])]
    with torch.no_grad():
        for name in written:
            buffers[name].copy_(before[name])
    mode = fake_mode()
    results = [loss, *(buffers[name] for name in written), *beside]
    like = [mode.from_tensor(value.detach(), static_shapes=True) for value in results]
    program = ProgramInPieces(workload, policy, why, reached, written, like)
    graph, inputs = fx.Graph(), list[Input]()

    def placeholder(kind: InputKind, name: str, tensor: torch.Tensor) -> fx.Node:
        node = graph.placeholder(name.replace(".", "_"))
        node.meta["val"] = mode.from_tensor(tensor.detach(), static_shapes=True)
        inputs.append(Input(node.name, kind, name, tensor))
        return node

    every = {n: placeholder(InputKind.PARAMETER, n, v) for n, v in model.named_parameters()}
    held = [placeholder(InputKind.BUFFER, n, v) for n, v in buffers.items()]
    batch = [
        placeholder(InputKind.BATCH, f"batch.{index}", value)
        for index, value in enumerate(workload.batch)
    ]
    others = [*(node for name, node in every.items() if name not in reached), *held]
    call = graph.call_function(
        torch.ops.mpcompile.run_in_pieces.default,
        ([every[name] for name in reached], others, batch, program.key),
    )
    call.meta["val"] = like
    file, _, line = (where or "").rpartition(":")
    if file:
        call.meta["stack_trace"] = f'  File "{file}", line {line}, in loss'
    parts = []
    for index, value in enumerate(like):
        part = graph.call_function(_ITEM, (call, index))
        part.meta = {**call.meta, "val": value}
        parts.append(part)
    graph.output((*parts[1:], parts[0]))
    return Forward(
        module_of(graph),
        tuple(inputs),
        tuple(written),
        None if alone else LastResult(found.structure, found.leaves, program.last_result),
        in_pieces=program,
    )
