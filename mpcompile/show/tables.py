"""Tables of a view, as data: ops by precision, casts, saved tensors, memory, largest ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mpcompile.show.view import PRECISIONS, STAGES, View, ViewNode

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class NodeSelection:
    """The nodes to look at; an empty tuple selects all.

    Attributes:
        modules: patterns of module paths; modules below a matching one are selected too.
        ops: patterns of ops.
        precisions: of `PRECISIONS`.
        stages: of `STAGES`.
    """

    modules: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.modules or self.ops or self.precisions or self.stages)

    def of(self, view: View) -> tuple[ViewNode, ...]:
        """Return the selected nodes, in order."""
        return tuple(filter(self._fits, view.nodes))

    def _fits(self, node: ViewNode) -> bool:
        return (
            (not self.modules or any(is_in_module(node, pattern) for pattern in self.modules))
            and (not self.ops or any(fnmatchcase(node.op, pattern) for pattern in self.ops))
            and (not self.precisions or node.precision in self.precisions)
            and (not self.stages or node.stage in self.stages)
        )


def is_in_module(node: ViewNode, pattern: str) -> bool:
    """Whether a node came from a module that matches a pattern, or from a module below it."""
    path = node.where.module
    return bool(path) and (fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*"))


def ops_by_precision(nodes: Sequence[ViewNode]) -> dict[str, Counts]:
    """Return per stage and op the number of ops in each precision; the most frequent first.

    Casts and views do not count as ops; `casts_of` lists the casts.
    """
    found: dict[str, Counts] = {}
    for stage in STAGES:
        counts: Counts = {}
        for node in nodes:
            if node.stage == stage and node.role == "op":
                row = counts.setdefault(node.op, dict.fromkeys(PRECISIONS, 0))
                row[node.precision] += 1
        if counts:
            order = sorted(counts, key=lambda op: (-sum(counts[op].values()), op))
            found[stage] = {op: counts[op] for op in order}
    return found


@dataclass(frozen=True, slots=True)
class CastRow:
    """One cast and its edge.

    Attributes:
        id: the cast's node.
        stage: its stage.
        tensor: id of the node whose result it converts.
        readers: ids of the nodes that read the copy.
        to: its format.
        bytes: bytes read and written if nothing fuses it.
        reason: why it is needed.
        module: path of its module.
    """

    id: str
    stage: str
    tensor: str
    readers: tuple[str, ...]
    to: str
    bytes: int
    reason: str
    module: str


def casts_of(view: View, nodes: Sequence[ViewNode]) -> list[CastRow]:
    """Return the casts among some nodes of a view, the largest first."""
    rows = [
        CastRow(
            node.id,
            node.stage,
            node.reads[0] if node.reads else "",
            view.readers.get(node.id, ()),
            node.stored,
            cast_bytes(node),
            node.reason,
            node.where.module,
        )
        for node in nodes
        if node.role == "cast"
    ]
    return sorted(rows, key=lambda row: -row.bytes)


def cast_bytes(node: ViewNode) -> int:
    """Return the bytes that an unfused cast reads and writes: 4 and 2 per element, or 2 and 4."""
    return 3 * node.bytes // 2 if node.stores == ("f32",) else 3 * node.bytes


def saved_of(nodes: Sequence[ViewNode]) -> list[ViewNode]:
    """Return the nodes whose results forward keeps for backward, the largest first."""
    return sorted((node for node in nodes if node.saved), key=lambda node: -node.bytes)


def largest_of(view: View, nodes: Sequence[ViewNode]) -> list[tuple[ViewNode, int]]:
    """Return ops and casts with the bytes each reads and writes if nothing is fused."""
    sizes = {node.id: _size(view, node) for node in view.nodes}
    rows = [
        (node, node.bytes + sum(sizes[name] for name in node.reads))
        for node in nodes
        if node.role in ("op", "cast")
    ]
    return sorted(rows, key=lambda row: -row[1])


def _size(view: View, node: ViewNode) -> int:
    seen: set[str] = set()  # the nodes of an untrusted view may form a cycle
    while node.role == "view" and node.reads and node.id not in seen:
        seen.add(node.id)
        node = view.by_id[node.reads[0]]
    return node.bytes


def peak_of(view: View) -> ViewNode | None:
    """Return the node at which most bytes are alive; None if the view does not know."""
    node = max(view.nodes, key=lambda node: node.alive, default=None)
    return node if node is not None and node.alive else None


def columns_of(view: View, width: int) -> list[tuple[int, str]]:
    """Return the memory over the step in columns: the maximum alive, and the first stage, of each.

    Args:
        view: its nodes are distributed over the columns in order.
        width: most columns.
    """
    nodes = [node for node in view.nodes if node.alive]
    count = min(width, len(nodes))
    columns: list[tuple[int, str]] = []
    for index in range(count):
        part = nodes[index * len(nodes) // count : (index + 1) * len(nodes) // count]
        columns.append((max(node.alive for node in part), part[0].stage))
    return columns
