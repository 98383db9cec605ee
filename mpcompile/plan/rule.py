"""A row of the op table: precision, and the effect that rounded inputs have on the result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Wish(Enum):
    """The precision an op's result should have."""

    HALF = "half"
    """Wants the 16-bit format: a Tensor Core does it."""
    FREE = "free"
    """Takes either; the planner decides by its neighbours."""
    FULL = "full"
    """Wants FP32."""


class PrecisionClass(Enum):
    """What an op computes in and what it may read and write."""

    TENSOR_CORE = "tensor core"
    """Reads and writes 16 bits and accumulates in FP32."""
    REDUCTION = "reduction"
    """Computes in FP32; reads and writes 16 bits or FP32."""
    WIDE = "wide"
    """Computes in FP32 and writes FP32; reads 16 bits or FP32."""
    EITHER = "either"
    """Computes in the precision that it is stored in."""
    TRANSPARENT = "transparent"
    """Moves or compares values in the precision that they are stored in."""
    UNTOUCHABLE = "untouchable"
    """Makes, draws or counts; reads and writes what it does in the FP32 program."""


class Sensitivity(Enum):
    """The effect of rounding the inputs of an op on its result; the value is the reason to print.

    `mpcompile.plan.sensitivity` keeps what a sensitive op reads in FP32.
    """

    HARMLESS = "a relative error of its inputs stays about as large"
    STEEP = "a steep function makes the error of a rounded input larger"
    PERIODIC = "16 bits hold no fraction of a large angle"
    ADDING = "a sum that nearly cancels keeps little but the rounding of its addends"
    CANCELLING = "a difference of like numbers keeps little but their rounding"
    COMPARISON = "a rounded number may compare differently"
    DISCONTINUOUS = "a rounded number may fall on the other side of a step or a choice"
    UNKNOWN = "nobody knows what rounding its inputs does"
    ILL_CONDITIONED = "a solver makes the error of a rounded matrix much larger"


_WISH = {
    PrecisionClass.TENSOR_CORE: Wish.HALF,
    PrecisionClass.REDUCTION: Wish.FREE,
    PrecisionClass.WIDE: Wish.FULL,
    PrecisionClass.EITHER: Wish.FREE,
    PrecisionClass.TRANSPARENT: Wish.FREE,
    PrecisionClass.UNTOUCHABLE: Wish.FULL,
}


_INSIDE = {
    precision_class: precision_class
    in (PrecisionClass.REDUCTION, PrecisionClass.WIDE, PrecisionClass.UNTOUCHABLE)
    for precision_class in PrecisionClass
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        name: the name of a family of ops, used in reports and policies; rows may share it.
        torch: ATen op names without namespace and overload, separated by blanks.
        onnx: ONNX op types, separated by blanks.
        precision_class: the precision in which its ops compute, read and write.
        saves: the FP32 tensors that autograd keeps for backward: ``"in"``, ``"out"``, ``"in out"``
            or ``""``. If overloads differ, all tensors that any of them keeps.
        streams: inductor compiles it to a loop and can fuse the producers of its inputs into that
            loop. False for library calls, reads by index and tensors that must be in memory.
        why: the reason, as a report prints it.
        full_arguments: names of arguments that always stay FP32, separated by blanks.
        sensitivity: the effect of rounded inputs on its result.
    """

    name: str
    torch: str
    onnx: str
    precision_class: PrecisionClass
    saves: str
    streams: bool
    why: str
    full_arguments: str = ""
    sensitivity: Sensitivity = Sensitivity.HARMLESS

    @property
    def wish(self) -> Wish:
        """The precision its result should have."""
        return _WISH[self.precision_class]

    @property
    def inside(self) -> bool:
        """Whether the arithmetic is FP32 for inputs of every precision."""
        return _INSIDE[self.precision_class]

    @property
    def gathers(self) -> bool:
        """Whether it is a loop that reads by index."""
        return self.name in ("embedding", "indexing")
