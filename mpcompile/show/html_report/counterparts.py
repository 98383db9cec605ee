"""Find for each node of the graph after its counterpart in the graph before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mpcompile.show.view import View, ViewNode

_WORKING = "_working"

_Key = tuple[object, ...]


def counterparts(before: View, after: View) -> list[int]:
    """Return for each node of ``after`` the index of its counterpart in ``before``, or -1.

    The counterpart is the node with the same id and op. If there is none, it is the node for the
    same op of the plan; if there are several, the one with the same number. The counterpart of a
    cast is that of its operand; a weight's working copy has the weight's counterpart.
    """
    by_id = {(node.stage, node.op, node.id): index for index, node in enumerate(before.nodes)}
    inputs = {node.id: index for index, node in enumerate(before.nodes) if node.role == "input"}
    by_op: dict[_Key, int] = {}
    by_plan: dict[_Key, int] = {}
    for index, (node, key) in enumerate(_numbered(before.nodes)):
        if node.planned:
            by_op[key] = index
            by_plan.setdefault(key[:2], index)
    found: list[int] = []
    for node, key in _numbered(after.nodes):
        index = by_id.get((node.stage, node.op, node.id), -1)
        if index < 0 and node.role == "input":
            index = inputs.get(node.id.removesuffix(_WORKING), -1)
        if index < 0 and node.planned and node.role != "cast":
            index = by_op.get(key, by_plan.get(key[:2], -1))
        found.append(index)
    return _through_casts(after, found)


def _numbered(nodes: Iterable[ViewNode]) -> Iterator[tuple[ViewNode, _Key]]:
    counts: Counter[_Key] = Counter()
    for node in nodes:
        key = (node.stage, node.planned, node.op)
        yield node, (*key[:2], node.op, counts[key])
        counts[key] += 1


def _through_casts(after: View, found: list[int]) -> list[int]:
    """Give each cast without a counterpart the counterpart of its operand."""
    indices = {node.id: index for index, node in enumerate(after.nodes)}
    for index, node in enumerate(after.nodes):
        source, seen = node, set[str]()
        while source.role == "cast" and source.reads and source.id not in seen:
            seen.add(source.id)  # the nodes of an untrusted view may form a cycle
            source = after.by_id[source.reads[0]]
        if found[index] < 0 and source is not node:
            found[index] = found[indices[source.id]]
    return found
