"""Which node of the graph before is which of the graph after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mpcompile.show.view import View, ViewNode

_WORKING = "_working"

_Key = tuple[object, ...]


def counterparts(before: View, after: View) -> list[int]:
    """Return per node of ``after`` the place of its counterpart in ``before``, or -1.

    That is the node of the same id and op; else the one that stands for the same op of the plan,
    the same one of those if there are several. A cast is what it converts; the working copy of a
    weight is the weight.
    """
    by_id = {(node.stage, node.op, node.id): place for place, node in enumerate(before.nodes)}
    inputs = {node.id: place for place, node in enumerate(before.nodes) if node.role == "input"}
    by_op: dict[_Key, int] = {}
    by_plan: dict[_Key, int] = {}
    for place, (node, key) in enumerate(_numbered(before.nodes)):
        if node.planned:
            by_op[key] = place
            by_plan.setdefault(key[:2], place)
    found: list[int] = []
    for node, key in _numbered(after.nodes):
        place = by_id.get((node.stage, node.op, node.id), -1)
        if place < 0 and node.role == "input":
            place = inputs.get(node.id.removesuffix(_WORKING), -1)
        if place < 0 and node.planned and node.role != "cast":
            place = by_op.get(key, by_plan.get(key[:2], -1))
        found.append(place)
    return _through_casts(after, found)


def _numbered(nodes: Iterable[ViewNode]) -> Iterator[tuple[ViewNode, _Key]]:
    counts: Counter[_Key] = Counter()
    for node in nodes:
        key = (node.stage, node.planned, node.op)
        yield node, (*key[:2], node.op, counts[key])
        counts[key] += 1


def _through_casts(after: View, found: list[int]) -> list[int]:
    """Give each cast that has none the counterpart of what it reads."""
    places = {node.id: place for place, node in enumerate(after.nodes)}
    for place, node in enumerate(after.nodes):
        source, seen = node, set[str]()
        while source.role == "cast" and source.reads and source.id not in seen:
            seen.add(source.id)  # a view that comes from a file may go round in circles
            source = after.by_id[source.reads[0]]
        if found[place] < 0 and source is not node:
            found[place] = found[places[source.id]]
    return found
