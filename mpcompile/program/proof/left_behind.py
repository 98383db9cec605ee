"""Tensors that a program leaves in attributes, items, closures and globals when it runs.

A place in the user's objects that gets a tensor becomes one more result of the graph, and the step
puts it there after each call. That is right only if the graph does not depend on what was there
before: a second capture, with another tensor in these places, must give the same graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mpcompile.errors import CompileError
from mpcompile.program.capture import Forward, InputKind
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.proof.effects import Effects
from mpcompile.program.proof.held import GONE, Holder, holder_of, look, put, spot_of
from mpcompile.program.proof.snapshot import Change, Snapshot
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.program.returned import Left, Spot
from mpcompile.program.tracing.traced_program import Watch
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tracing import leaves_of

_CONSTANTS = (type(None), bool, int, float, str)


def capture_left(effects: Effects, capture: Callable[[Watch], Forward]) -> Forward:
    """Capture a program with the tensors that it leaves behind.

    Args:
        effects: the places that get a tensor are noted there.
        capture: captures the program.
    """
    read: set[str] = set()
    while True:
        forward = capture(_Watch(effects, read))
        if forward.left is None:
            effects.note_left((), read)
            return forward
        spots = forward.left.spots
        if not _reads(forward, spots, effects, capture, read):
            effects.note_left([spot.path for spot in spots], read)
            return forward
        alone = []
        if len(spots) > 1:
            alone = [spot for spot in spots if _reads(forward, [spot], effects, capture, read)]
        read |= {spot.path for spot in alone or spots}


def _reads(
    forward: Forward,
    spots: Sequence[Spot],
    effects: Effects,
    capture: Callable[[Watch], Forward],
    without: Container[str],
) -> bool:
    """Whether the graph depends on what is in some places before a call."""
    marks = {spot: mark for spot, mark in _marks(forward).items() if spot in spots}
    try:
        return not _alike(forward, capture(_Watch(effects, without, marks)))
    except CompileError:
        return True


def left_values(found: Surroundings, left: Left | None) -> tuple[torch.Tensor, ...]:
    """Return the tensors that are now in the places of a program."""
    values = []
    for spot in left.spots if left else ():
        holder = holder_of(found.holders, spot)
        values += leaves_of(None if holder is None else look(holder, spot.key))
    return tuple(value for value in values if isinstance(value, torch.Tensor))


class _Watch:
    """See `Watch`.

    Args:
        effects: notes what one run changes.
        without: places that stay out.
        marks: values that an earlier call could have left in places; nothing is noted then.
    """

    def __init__(
        self, effects: Effects, without: Container[str], marks: Mapping[Spot, Any] | None = None
    ) -> None:
        self._effects, self._without, self._marks = effects, without, marks

    @contextmanager
    def around(self) -> Iterator[None]:
        """Put the marks in place, and put all back at the end."""
        holders = self._effects.found.holders
        for spot, mark in (self._marks or {}).items():
            holder = holder_of(holders, spot)
            put(holder, spot.key, _unlike(look(holder, spot.key), mark))
        try:
            yield
            if self._marks is None:
                self._effects.note()
        finally:
            self._effects.put_back()

    def begin(self) -> Callable[[], list[tuple[Spot, Any]]]:
        """See `Watch`."""
        found = self._effects.found
        note = Snapshot(found)
        return lambda: list(_tensors(note.changes(), found, self._without))


def _tensors(
    changes: Sequence[Change], found: Surroundings, without: Container[str]
) -> Iterator[tuple[Spot, Any]]:
    """Yield the changes that put tensors, or plain containers of them, into a place with a name."""
    met = set[Spot]()
    for change in changes:
        item = change.holder
        if change.is_state or not isinstance(item, Holder) or change.path in without:
            continue
        if isinstance(item.value, list | deque | set) or change.after is GONE:
            continue
        leaves = leaves_of(change.after)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors or not all(isinstance(leaf, (torch.Tensor, *_CONSTANTS)) for leaf in leaves):
            continue
        spot = spot_of(item, change.key)
        if spot not in met and holder_of(found.holders, spot) is item.value:
            met.add(spot)
            yield spot, change.after


def _marks(forward: Forward) -> dict[Spot, Any]:
    """Return values such as a program leaves in its places."""
    left = forward.left
    assert left is not None
    made: Any = forward.module.graph.output_node().args[0]
    values = [node.meta["val"] for node in made[-1 - left.tree.count : -1]]
    return dict(zip(left.spots, left.tree(list(map(_example, values))), strict=True))


def _example(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor like one of a graph; an open size is 2."""
    shape = [size if isinstance(size, int) else 2 for size in value.shape]
    number = 0.7310585 if value.is_floating_point() else 1
    return torch.full(shape, number, dtype=value.dtype, device=value.device)


def _unlike(old: Any, mark: Any) -> Any:
    """Return a value like the mark whose numbers differ from the old ones."""
    if not isinstance(old, torch.Tensor) or not isinstance(mark, torch.Tensor):
        return mark
    if old.shape != mark.shape or old.dtype is not mark.dtype:
        return mark
    value = old.detach()
    return ~value if value.dtype is torch.bool else value + 1


def _alike(one: Forward, other: Forward) -> bool:
    """Whether two captures are the same graph of the same tensors."""
    return (
        _text(one) == _text(other)
        and len(one.inputs) == len(other.inputs)
        and one.left is not None
        and other.left is not None
        and (one.left.spots, one.left.tree.leaves) == (other.left.spots, other.left.tree.leaves)
        and all(
            mine.name == theirs.name
            and (mine.kind is InputKind.BATCH or _same(mine.tensor, theirs.tensor))
            for mine, theirs in zip(one.inputs, other.inputs, strict=True)
        )
    )


def _text(forward: Forward) -> list[tuple[Any, ...]]:
    return [
        (node.name, node.op, op_name(node), repr(node.args), repr(node.kwargs))
        for module in all_graphs(forward.module)
        for node in module.graph.nodes
    ]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two inputs are the same tensor, or constants that a capture makes anew."""
    if one is other:
        return True
    alike = one.shape == other.shape and one.dtype is other.dtype and one.device == other.device
    return alike and torch.equal(one, other)
