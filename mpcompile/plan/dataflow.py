"""The neutral graph: the planner's only input, without torch or ONNX objects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mpcompile.plan.bounds.bound import NOTHING, Bound
from mpcompile.plan.rule import Sensitivity, Wish


@dataclass(frozen=True, slots=True)
class Where:
    """A position in the user's program; empty strings and 0 mean unknown."""

    module: str = ""
    file: str = ""
    line: int = 0

    @property
    def at(self) -> str | None:
        """``file:line``, or None if the file is unknown."""
        return f"{self.file}:{self.line}" if self.file else None

    def __str__(self) -> str:
        return "  ".join(part for part in (self.module, self.at) if part)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        id: the node's name; unique in its graph.
        kind: the op's name, for people.
        rule: the row of the op table.
        wish: the precision its result should have, overrides applied.
        inside: it computes in FP32 in whatever precision its inputs are stored.
        streams: a fusing backend compiles it to a loop, which converts inputs and results in
            registers; otherwise it is a library call that reads its inputs from memory.
        reason: why it has this wish.
        reads: ids of the floating-point tensors it reads.
        writes: ids of the floating-point tensors it writes.
        keeps: the tensors of `reads` and `writes` that its backward needs.
        full_reads: the inputs that it reads in FP32 in either precision of its own.
        gathers: it reads its input by index, so that input is in memory in some precision.
        view: its results share memory with its inputs if both have the same precision. A view
            that does not stream is the border of an inner graph: all its tensors are one value.
        unfit: why FP16 cannot hold a number that it computes with or makes, or "".
        overridden: the user has set its precision.
        sensitivity: the effect of rounded inputs on its results.
        exact: it is FP32 because of a sensitive op, so neither measured ranges nor the plan of
            another batch shape move it to 16 bits.
        where: its position in the user's program.
    """

    id: str
    kind: str
    rule: str
    wish: Wish
    inside: bool
    streams: bool
    reason: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    full_reads: tuple[str, ...] = ()
    gathers: bool = False
    view: bool = False
    unfit: str = ""
    overridden: bool = False
    sensitivity: Sensitivity = Sensitivity.HARMLESS
    exact: bool = False
    where: Where = Where()


class Fixed(Enum):
    """Why a tensor exists in FP32 under every plan; the value is its name in a report."""

    PARAMETER = "a parameter"
    BUFFER = "a buffer"
    BATCH = "a batch"
    INPUT = "an input"
    STATISTIC = "a statistic"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One FP32 tensor.

    Attributes:
        id: the node's name; unique in its graph.
        elements: how many numbers it holds; inside a loop or a branch, summed over all its runs
            (`mpcompile.program.control_flow`).
        fixed: why it exists in FP32 anyway; None if an op decides.
        output: the graph returns it, and it must be FP32 there.
        fits: it was measured, and FP16 holds all its numbers with all their digits.
        bound: what is known about its numbers without data.
    """

    id: str
    elements: int
    fixed: Fixed | None = None
    output: bool = False
    fits: bool = False
    bound: Bound = NOTHING


@dataclass(frozen=True, slots=True)
class Dataflow:
    """Ops and tensors of one graph; every read tensor is written by one op or fixed."""

    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
