"""The gradient graphs of one step: one for each situation of the program and shape of batch."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from mpcompile.errors import BadInput
from mpcompile.lower.cuda_graph import CapturedStep, Step
from mpcompile.program.batch import Batch, Structure, of_arguments, structure_of
from mpcompile.program.batch_size import BatchSize, size_of
from mpcompile.program.returned import Left, ReturnedTree
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role
from mpcompile.train.bound_graphs import BoundGradient
from mpcompile.train.changes.changing_numbers import BoundNumbers, NotAsInputs
from mpcompile.train.changes.situation import Facts, Situation

MOST_SITUATIONS = 16
"""Graphs are kept for so many situations of the program; those not used for longest are dropped."""

MOST_BRANCHES = 8
"""Graphs are made for so many ways in which a program decides by numbers that are inputs."""

NO_NUMBERS: Mapping[str, float] = MappingProxyType({})

_log = logging.getLogger("mpcompile")

_Shapes: TypeAlias = tuple[Hashable, ...]


@dataclass(frozen=True)
class BatchGraph:
    """The graphs for batches of one shape, or of all shapes that differ in the batch size only.

    The graphs of a program in pieces are for batches of any shapes.

    Attributes:
        step: the step graph; all batch graphs share one update graph.
        gradient: its gradient graph, bound to the step's state.
        returns: the structure of the caller's result, if it is more than the loss.
        size: the batch size that the graph leaves open, or None.
        run: runs the gradient graph and the graph after it.
        numbers: the Python numbers of the program that it reads.
        left: what the program leaves in the user's objects, or None.
    """

    step: StepGraph
    gradient: BoundGradient
    returns: ReturnedTree | None
    size: BatchSize | None
    run: Step
    numbers: BoundNumbers
    left: Left | None

    def result(self, made: Sequence[torch.Tensor], leave: Callable[[Left, Any], None]) -> Any:
        """Return the caller's result.

        Args:
            made: the results of `run`.
            leave: puts values into the user's objects, where the program leaves them.
        """
        if self.left is not None:
            end = len(made) - self.left.tree.count
            leave(self.left, self.left.tree(made[end:]))
            made = made[:end]
        return made[0] if self.returns is None else self.returns(made)


@dataclass(frozen=True, slots=True)
class _Last:
    """The batch of the call before, and its graph.

    Attributes:
        kinds: shape, dtype and device of each tensor.
        structure: of the arguments.
        graph: its graph.
    """

    kinds: list[tuple[torch.Size, torch.dtype, torch.device]]
    structure: Structure | None
    graph: BatchGraph


class BatchGraphs:
    """All graphs of a step: one for the example batch, and one more for each new shape.

    A graph of a program in pieces is for all batches of as many tensors.

    After a change in the program there is one more for each shape. If the program is as it was
    before, the graphs of then are used again.

    Attributes:
        situation: how the program is now.
        said: how the program differs from before, if no graph was made for it yet.
        is_open: per tensor of a batch whether its size is left open; empty if none is.

    Args:
        first: the graph for the example batch.
        situation: the one that this graph was captured in.
        batch: the example batch.
        another: makes a graph for a batch of other shapes; its second argument says which tensors
            have an open batch size.
    """

    def __init__(
        self,
        first: BatchGraph,
        situation: Situation,
        batch: Sequence[torch.Tensor],
        another: Callable[[Sequence[torch.Tensor], tuple[bool, ...]], BatchGraph],
    ) -> None:
        self._slots = [slot for slot in first.step.slots.values() if slot.role is Role.BATCH]
        self._devices = [value.device for value in batch]
        self._any_shapes = first.gradient.any_shapes
        self._structure = structure_of(batch)
        self.is_open = first.size.open_dims if first.size else ()
        _, key = self._size_and_key(batch)
        self._graphs: dict[_Shapes, list[BatchGraph]] = {key: [first]}
        self._situations = OrderedDict({_key(situation): self._graphs})
        self._another = another
        self._last: _Last | None = None
        self.situation, self.said = situation, ""

    def given(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """Return the arguments of a call as a batch.

        Flat tensors have the structure of the example batch.

        Raises:
            BadInput: something in it is neither a tensor nor a constant.
        """
        if not named and all(isinstance(value, torch.Tensor) for value in args):
            return args if self._structure is None else Batch(args, self._structure)
        given = args[0] if len(args) == 1 else None
        return given if isinstance(given, Batch) else of_arguments(args, named)

    def __len__(self) -> int:
        """Count the graphs that are kept."""
        return sum(1 for _ in self._every())

    def _every(self) -> Iterator[BatchGraph]:
        for graphs in self._situations.values():
            yield from chain.from_iterable(graphs.values())

    def knows(self, situation: Situation) -> bool:
        """Whether there is a graph for a situation of the program."""
        return bool(self._situations.get(_key(situation)))

    def enter(self, situation: Situation, said: str) -> None:
        """Use the graphs of a situation of the program from now on.

        Args:
            situation: how the program is now.
            said: how it differs from before; a graph that has to be made is announced with it.
        """
        key = _key(situation)
        self.said = "" if self.knows(situation) else said
        self.situation, self._last = situation, None
        self._graphs = self._situations.setdefault(key, {})
        self._situations.move_to_end(key)
        if len(self._situations) > MOST_SITUATIONS:
            self._situations.popitem(last=False)

    def bind(self) -> None:
        """Let all graphs read the state at its present storage."""
        for graph in self._every():
            graph.gradient.bind()
            if isinstance(graph.run, CapturedStep):
                graph.run.forget()

    def __call__(
        self, batch: Sequence[torch.Tensor], numbers: Mapping[str, float] = NO_NUMBERS
    ) -> BatchGraph:
        """Return the graph for a batch, with the numbers of the program that are its inputs.

        Raises:
            BadInput: the program does not admit the batch.
        """
        graph = self._graph(batch, numbers)
        graph.numbers.hand_over(numbers)
        return graph

    def _graph(self, batch: Sequence[torch.Tensor], numbers: Mapping[str, float]) -> BatchGraph:
        """Find the graph for a batch; most are as the batch of the call before."""
        last, kinds = self._last, [(value.shape, value.dtype, value.device) for value in batch]
        if (
            last is not None
            and kinds == last.kinds
            and structure_of(batch) == last.structure
            and last.graph.numbers.admits(numbers)
        ):
            return last.graph
        found = self._find(batch, numbers)
        if found.size is None:  # conditions on an open size may be added later
            self._last = _Last(kinds, structure_of(batch), found)
        return found

    def _find(self, batch: Sequence[torch.Tensor], numbers: Mapping[str, float]) -> BatchGraph:
        self.check(batch)
        size, key = self._size_and_key(batch)
        found = self._graphs.setdefault(key, [])
        # More than one if inductor makes other code for large sizes, or if a number decides.
        fitting = [g for g in found if g.size is None or size is None or g.size.admits(size)]
        for graph in fitting:
            if graph.numbers.admits(numbers):
                return graph
        if len(fitting) == MOST_BRANCHES:
            raise NotAsInputs("the program decides by it in many ways")
        made = self._another(batch, () if size is None else self.is_open)
        if made.size is not None and made.size.open_dims != self.is_open:
            raise BadInput(
                "with this shape the program fixes a size that is open in the example batch",
                fix="compile another step for this shape",
            )
        found.append(made)
        if self.said:
            _log.info("%s: compiled graph %d of the step", self.said, len(self))
            self.said = ""
        elif fitting:
            _log.info("a number decides otherwise now: compiled graph %d of the step", len(self))
        else:
            shapes = ", ".join(f"[{', '.join(map(str, value.shape))}]" for value in batch)
            _log.info("compiled graph %d of the step for batches of shapes %s", len(self), shapes)
        return made

    def _size_and_key(self, batch: Sequence[torch.Tensor]) -> tuple[int | None, _Shapes]:
        """Return the open size of a batch, if it has one, and its shapes without this size."""
        if self._any_shapes:
            return None, (len(batch),)
        structure = structure_of(batch)
        if structure is not None and structure != self._structure:
            # Other constants, or another structure: another program on the same weights.
            return None, (structure, *(value.shape for value in batch))
        size = size_of(batch, self.is_open) if self.is_open else None
        if size is None:
            return None, tuple(value.shape for value in batch)
        return size, tuple(
            ("any", *value.shape[1:]) if is_open else value.shape
            for value, is_open in zip(batch, self.is_open, strict=True)
        )

    def check(self, batch: Sequence[torch.Tensor]) -> None:
        """Raise BadInput if a batch differs from the example in more than its sizes.

        A batch of another structure can have other tensors.
        """
        if structure_of(batch) != self._structure:
            return
        if len(batch) != len(self._slots):
            raise BadInput(
                f"the step was called with {len(batch)} tensors",
                fix=f"give {len(self._slots)}, as in the example batch",
            )
        for value, slot, device in zip(batch, self._slots, self._devices, strict=True):
            if value.device != device:
                raise BadInput(
                    f"{slot.name} is on {value.device}, but the example batch was on {device}",
                    fix=f"move the tensor with .to({str(device)!r})",
                )
            if value.dim() != len(slot.shape) or value.dtype is not slot.dtype:
                raise BadInput(
                    f"{slot.name} is {str(value.dtype).removeprefix('torch.')}"
                    f"{list(value.shape)}, but the step was compiled for "
                    f"{str(slot.dtype).removeprefix('torch.')}{list(slot.shape)}",
                    fix="give the same number of dimensions and dtype as in the example batch",
                )


def _key(situation: Situation) -> tuple[Facts, Facts]:
    """Return what graphs on one layout of the weights depend on."""
    return situation.modes, situation.program
