"""The tensors a graph writes to memory, and the ops that load them: the planner's objective.

``docs/planner.md`` derives it. Everything here is independent of how the minimum is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mpcompile.plan.dataflow import Dataflow, Op, Tensor


class Cost(NamedTuple):
    """The cost of a plan; plans compare by bytes, then by casts.

    Attributes:
        bytes: bytes written to memory in forward, plus the bytes kept for backward.
        casts: tensors converted to a precision in which they are not stored.
    """

    bytes: int
    casts: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """How one tensor uses memory. ``s`` is the precision its writer stores.

    Attributes:
        tensor: the tensor.
        writer: the op that writes it; None for a fixed tensor, whose ``s`` is FP32.
        readers: the ops that read it, in graph order.
        written: it is stored in ``s`` for every set of readers, and its bytes count.
        present: it is in memory in ``s`` anyway: written, fixed, or a view of such a tensor.
        loads: ops that need it in memory in their own precision.
        reads: ops that read it in their own precision, from memory or in registers.
        kept: ops in whose own precision backward keeps it; the writer is listed for the ops that
            keep it as it is stored.
        wide: it must exist in FP32: the graph returns it, or an op always reads it in FP32.
        rounded: it enters or leaves an inner graph and is widened there; of equal plans, the one
            that passes it in FP32 is better.
    """

    tensor: Tensor
    writer: Op | None
    readers: tuple[Op, ...]
    written: bool
    present: bool
    loads: tuple[Op, ...]
    reads: tuple[Op, ...]
    kept: tuple[Op, ...]
    wide: bool
    rounded: bool

    @property
    def narrow_bytes(self) -> int:
        """Bytes of the tensor in 16 bits."""
        return 2 * self.tensor.elements

    @property
    def wide_bytes(self) -> int:
        """Bytes of the tensor in FP32."""
        return 4 * self.tensor.elements


def footprints(flow: Dataflow) -> tuple[Footprint, ...]:
    """Return one row per tensor, in the order of ``flow.tensors``."""
    graph = _Graph(flow)
    fused = frozenset(name for name in graph.writer if graph.is_fused(name))
    kept: dict[str, list[Op]] = {}
    for tensor in flow.tensors:
        kept.setdefault(graph.root(tensor.id), []).extend(graph.keepers(tensor.id))
    return tuple(_footprint(graph, tensor, kept, fused) for tensor in flow.tensors)


class _Graph:
    """The writer and the readers of each tensor."""

    def __init__(self, flow: Dataflow) -> None:
        self.tensors = {tensor.id: tensor for tensor in flow.tensors}
        self.readers: dict[str, list[Op]] = {tensor.id: [] for tensor in flow.tensors}
        self.writer: dict[str, Op] = {}
        for op in flow.ops:
            for name in dict.fromkeys(op.reads):
                self.readers[name].append(op)
            for name in op.writes:
                self.writer[name] = op

    def root(self, name: str) -> str:
        """Return the tensor whose whole memory this one is a view of, or itself."""
        writer = self.writer.get(name)
        while writer is not None and writer.view and len(writer.reads) == 1:
            base = writer.reads[0]
            parts = self.tensors[base].elements != self.tensors[name].elements
            if parts and not is_border(writer):
                break
            name, writer = base, self.writer.get(base)
        return name

    def keepers(self, name: str) -> list[Op]:
        """Return the ops in whose precision backward keeps a tensor."""
        found = [op for op in self.readers[name] if name in op.keeps]
        writer = self.writer.get(name)
        as_stored = [op for op in found if is_neutral(op, name)]
        if writer is not None and (as_stored or name in writer.keeps):
            found = [*(op for op in found if op not in as_stored), writer]
        return found

    def is_fused(self, name: str) -> bool:
        """Whether a tensor never reaches memory, because one kernel makes and reads it.

        This is true if its writer streams and, behind any views, one op reads it. That op must
        stream, must not read it by index and must not keep it.
        """
        writer = self.writer[name]
        if not writer.streams or writer.view or name in writer.keeps:
            return False
        while not self.tensors[name].output and len(self.readers[name]) == 1:
            (reader,) = self.readers[name]
            if not (reader.view and reader.streams):
                keeps = name in reader.keeps or name in reader.full_reads
                return reader.streams and not (reader.gathers or keeps)
            if len(reader.writes) != 1:
                return False
            name = reader.writes[0]
        return False


def is_border(op: Op) -> bool:
    """Whether an op is the border of an inner graph: a view in memory, not part of a kernel."""
    return op.view and not op.streams


def is_neutral(op: Op, tensor: str) -> bool:
    """Whether an op takes a tensor in either precision, widening it in registers."""
    return op.inside and op.streams and tensor not in op.full_reads


def reads_wide(op: Op, tensor: str) -> bool:
    """Whether an op reads a tensor in FP32 even if its own precision is 16 bits."""
    return tensor in op.full_reads or (op.inside and not op.streams)


def _footprint(
    graph: _Graph, tensor: Tensor, keepers: Mapping[str, list[Op]], fused: frozenset[str]
) -> Footprint:
    name = tensor.id
    writer = graph.writer.get(name)
    readers = graph.readers[name]
    reads = [op for op in readers if not is_neutral(op, name)]
    loads = [op for op in reads if not op.streams or op.view or name in op.keeps]
    kept = keepers.get(name, []) if writer is not None else []
    # A kernel of loops writes only the copies that are loaded, if all readers load copies.
    copies_only = bool(readers) and loads == readers and writer not in kept
    view = writer is not None and writer.view
    written = writer is not None and not (view or name in fused or (writer.streams and copies_only))
    return Footprint(
        tensor=tensor,
        writer=writer,
        readers=tuple(readers),
        written=written,
        present=written or view or writer is None,
        loads=() if name in fused else tuple(op for op in loads if not reads_wide(op, name)),
        reads=tuple(op for op in reads if not reads_wide(op, name)),
        kept=tuple(dict.fromkeys(kept)),
        wide=tensor.output or any(reads_wide(op, name) for op in readers),
        rounded=writer is not None and is_border(writer) and reads != readers,
    )


def cost(rows: tuple[Footprint, ...], half: frozenset[str]) -> Cost:
    """Return the cost of an assignment, term by term as in ``docs/planner.md``.

    Args:
        rows: `footprints` of a graph.
        half: ids of the ops that store 16 bits.
    """
    total = casts = 0
    for row in rows:
        stored_half = row.writer is not None and row.writer.id in half
        loads = {op.id in half for op in row.loads}
        reads = {op.id in half for op in row.reads}
        kept = {op.id in half for op in row.kept}
        narrow, wide = row.narrow_bytes, row.wide_bytes
        if row.written:
            total += narrow if stored_half else wide
        if True in loads and not (row.present and stored_half):
            total += narrow
        if (False in loads or row.wide) and not (row.present and not stored_half):
            total += wide
        total += narrow * (True in kept) + wide * (False in kept)
        casts += True in reads and not stored_half
        casts += (False in reads or row.wide or row.rounded) and stored_half
    return Cost(total, casts)
