"""Runs a program that Dynamo compiles in pieces, and keeps the autograd graph of its last run.

Python that looks at values may take another way for each batch. The way of a run is what it does to
the model and what it returns: the parameters that the loss reaches, the buffers that are written,
and how many tensors are beside the loss. A step graph is for one way and for batches of any shape.
If a run takes another way, its results are kept while the step goes over to the graph of that way,
so nothing runs twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CompileError
from mpcompile.lower.lower import Backend
from mpcompile.pieces.breaks import Piece, piece_of, said
from mpcompile.pieces.dynamo_graph import Outcome, compile_graph
from mpcompile.pieces.weight_copies import WeightCopies
from mpcompile.plan.policy import Policy
from mpcompile.program.batch import Arguments
from mpcompile.program.complex_parameters import as_real
from mpcompile.program.node_tensors import NARROW
from mpcompile.program.returned import TENSOR, ReturnedTree, stands_alone
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import Workload
from mpcompile.step.ways import OtherWay, Way
from mpcompile.torch_private.in_pieces import InPieces
from mpcompile.torch_private.tensors import fake_mode, version_of
from mpcompile.torch_private.tracing import flatten

_LOG = logging.getLogger("mpcompile")


@dataclass(slots=True)
class Made:
    """What a run has made.

    Attributes:
        loss: with its autograd graph; None behind backward.
        buffers: the next value of each buffer that was written.
        beside: the tensors beside the loss; None if the program returns the loss alone.
        wide: gradients by parameter, after backward.
        narrow: those of 16-bit copies by parameter.
    """

    loss: torch.Tensor | None
    value: torch.Tensor
    buffers: dict[str, torch.Tensor]
    beside: list[torch.Tensor] | None
    wide: dict[str, torch.Tensor]
    narrow: dict[str, torch.Tensor]

    def gradients(self, way: Way) -> list[torch.Tensor]:
        """Return the gradients in FP32 and then those of the copies, as a graph for a way wants."""
        return [
            *(as_real(self.wide[name]) for name in way.wide),
            *(self.narrow[name] for name in way.narrow),
        ]


class Runner:
    """Runs a program for all graphs of its step.

    Attributes:
        pieces: what Dynamo has compiled so far, in order.
        backend: runs each piece; None: the default of the device.
        way: the way that the last run has taken.
        like: fake tensors like the loss and those beside it, of any shapes, by `Way.beside`.
        mode: of all fake tensors of its graphs.
        outcomes: what became of each piece.

    Args:
        workload: the program.
        policy: gives the wished precision of each op.
        why: the reason why it is not one graph.
        way: the way of the example batch.
        shown: whether it runs to show the plans of all pieces; then nothing is said of the breaks.
        copies: whether the update may keep 16-bit copies of weights.
    """

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        why: CompileError,
        way: Way,
        *,
        shown: bool = False,
        copies: bool = True,
    ) -> None:
        self.pieces, self.way = list[Piece](), way
        self.backend: Backend | None = None
        self.like, self.mode = dict[int | None, list[torch.Tensor]](), fake_mode()
        self.outcomes = list[Outcome]()
        self.workload, self.policy, self.why, self._shown = workload, policy, why, shown
        self._copies, self._keeps = WeightCopies(), copies
        self._result: tuple[Any, Sequence[Any]] = None, ()
        self._before, self._said = dict[str, tuple[torch.Tensor, torch.Tensor]](), False
        self._made: Made | None = None
        self._again = False
        self._constants: dict[str, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self._run = InPieces(workload.function, workload.model, self._compile)

    def _compile(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        policy = self.policy.inside(f"piece{len(self.pieces)}.")
        made, outcome = compile_graph(
            module, inputs, policy, self.backend, copies=self._copies, every=self._shown
        )
        self.outcomes.append(outcome)
        self.pieces.append(piece_of(module, outcome.casts, outcome.wide))
        return made

    def forward(
        self,
        arguments: Arguments,
        buffers: Mapping[str, torch.Tensor],
        trained: Mapping[str, torch.Tensor],
        copies: Mapping[str, torch.Tensor],
        written: Collection[str],
    ) -> Made:
        """Run the program, or return what it has made if the step goes over to its way.

        Args:
            arguments: those of the loss behind the model.
            buffers: all of the model.
            trained: all parameters that the optimizer trains.
            copies: their 16-bit copies, as far as the step has them.
            written: names of the buffers that the graph which asks lets the program write.

        Raises:
            BadInput: the result is neither a loss nor a loss and anything.
        """
        if self._again:
            assert self._made is not None
            return self._made
        self.put_back()
        self._before = {name: (buffers[name], buffers[name].clone()) for name in written}
        versions = self._watch(buffers, written)
        self._copies.begin(trained, copies)
        args, named = arguments
        result = self._run(self.workload.model, *args, **named)
        if not self._said:
            self._said = True
            if not self._shown:
                _LOG.warning("%s", said(self.pieces, self.why))
        (loss, *more), tree, alone = returned(result, self.workload)
        if loss.dtype in NARROW:
            loss = loss.float()
        self._result = tree.structure, tree.leaves
        for name, version in versions.items():
            if version_of(buffers[name]) != version:  # no batch before has written it
                self._before[name] = buffers[name], self._constants.pop(name)[2]
        made = {name: value.detach().clone() for name, (value, _) in self._before.items()}
        beside = None if alone else [value.detach().clone() for value in more]
        self._made = Made(loss, loss.detach().clone(), made, beside, {}, {})
        return self._made

    def _watch(
        self, buffers: Mapping[str, torch.Tensor], written: Collection[str]
    ) -> dict[str, int]:
        """Keep a copy of each buffer that is not to be written, and return its version."""
        versions = {}
        for name, value in buffers.items():
            if name not in written:
                versions[name] = version = version_of(value)
                kept = self._constants.get(name)
                if kept is None or kept[0] is not value or kept[1] != version:
                    self._constants[name] = value, version, value.detach().clone()
        return versions

    def note(self, tensors: Sequence[torch.Tensor]) -> None:
        """Note the loss and the tensors beside it as examples of those on the present way."""
        self.like[self.way.beside] = [
            self.mode.from_tensor(value.detach(), static_shapes=True) for value in tensors
        ]

    def last_result(self) -> tuple[Any, Sequence[Any]]:
        """Return structure and leaves of the last result, `TENSOR` for each tensor."""
        return self._result

    def put_back(self) -> None:
        """Put buffers back after a run; not before backward, which may read what they are then."""
        if not self._before:
            return
        with torch.no_grad():
            for value, old in self._before.values():
                value.copy_(old)
        self._before = {}

    def backward(
        self, seed: torch.Tensor, weights: Mapping[str, torch.Tensor], way: Way
    ) -> list[torch.Tensor]:
        """Return the gradients of the reached parameters for the last run.

        Args:
            seed: the gradient of the loss.
            weights: all parameters that the optimizer trains.
            way: of the graph that asks.

        Raises:
            OtherWay: the run has taken another way.
        """
        made = self._made
        assert made is not None
        if made.loss is None:  # it is repeated
            return made.gradients(way)
        loss, made.loss = made.loss, None
        written, leaves = tuple(self._before), self._copies.take()
        try:
            sources = [*weights.values(), *leaves.values()]
            found = torch.autograd.grad(loss, sources, seed, allow_unused=True)
        finally:
            self.put_back()
        made.wide = _there(weights, found)
        made.narrow = _there(leaves, found[len(weights) :])
        if not self._keeps:
            for name, value in made.narrow.items():
                before = made.wide.get(name)
                made.wide[name] = value.float() if before is None else before + value
            made.narrow = {}
        self.way = way
        beside = None if made.beside is None else len(made.beside)
        if Way(tuple(made.wide), tuple(made.narrow), written, beside) != way:
            narrow = tuple(name for name in weights if name in made.narrow)
            self.way = Way(tuple(made.wide), narrow, written, beside)
            self.note([made.value, *(made.beside or ())])
            raise OtherWay(self.way, self._repeated)
        self._made = None  # it holds the gradients
        return made.gradients(way)

    @contextmanager
    def _repeated(self) -> Iterator[None]:
        """Return the last run's results inside ``with`` instead of running again."""
        self._again = True
        try:
            yield
        finally:
            self._again, self._made = False, None


def returned(result: Any, workload: Workload) -> tuple[list[torch.Tensor], ReturnedTree, bool]:
    """Return the tensors of a program's result, the loss first, and its tree.

    The last of the three says whether the program returns the loss alone.

    Raises:
        BadInput: the result is neither a loss nor a loss and anything.
    """
    leaves, structure = flatten(result)
    kept = tuple(TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    tree = ReturnedTree(structure, kept)
    try:
        alone = stands_alone(tree)
    except ValueError as error:
        where = definition(workload.loss) or workload.origin
        advice = "return one 0-d FP32 tensor, or a pair of this tensor and any other value"
        raise BadInput(f"the loss returns {error}", where, advice) from None
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], tree, alone


def _there(names: Iterable[str], found: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Return the gradients that there are, by name."""
    return {
        name: value.contiguous()
        for name, value in zip(names, found, strict=False)
        if value is not None
    }
