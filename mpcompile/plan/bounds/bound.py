"""The interval of a tensor's numbers, and how wrong they become if all before them has 16 bits."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from typing import TypeAlias

from mpcompile.precision import Precision

Operand: TypeAlias = str | float | tuple[str, ...] | None
"""The id of a tensor, a number, the ids of a list of tensors, or something without numbers."""

TINY = 2.0**-25
"""Half of the smallest FP16 number: what rounding changes at most where digits run out."""


@dataclass(frozen=True, slots=True)
class Step:
    """One op as this analysis sees it; integer tensors count, too.

    Attributes:
        kind: the op's name, of torch or ONNX.
        operands: its arguments in the order of its schema.
        result: the id of its result.
        length: how many numbers one number of the result is made of, or can choose among; 0:
            unknown.
        limits: the least and the largest number of its dtype; None for floating-point numbers.
        full: its result is FP32, so a plan may store it in 16 bits.
    """

    kind: str
    operands: tuple[Operand, ...]
    result: str
    length: int = 0
    limits: tuple[float, float] | None = None
    full: bool = True


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known about the numbers of one tensor.

    The errors are first-order bounds. Their unit is the rounding of a number of size 1 (2^-11 for
    FP16), and they compare with FP32 what comes out if all ops up to here store 16 bits, a layer's
    own error left out. Arguments of steps and comparisons that no layer has rounded count as exact,
    because such an op demands FP32 for them itself.

    Attributes:
        low: no number is less.
        high: no number is larger.
        integer: all numbers are integers.
        error: the largest error.
        relative: the largest error of a number divided by its size, where the format has digits for
            it. A number beyond the format's range may be infinite.
        rounded: a layer is among its ancestors.
        weight: a weight is.
    """

    low: float = -inf
    high: float = inf
    integer: bool = False
    error: float = inf
    relative: float = inf
    rounded: bool = False
    weight: bool = False

    @property
    def size(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def least(self) -> float:
        """The smallest magnitude."""
        return max(self.low, -self.high, 0.0)

    @property
    def exact(self) -> bool:
        """Whether 16 bits change no number."""
        return self.error == 0

    def __str__(self) -> str:
        what = "holds integers" if self.integer else "is"
        return f"{what} between {self.low:.4g} and {self.high:.4g}"


NOTHING = Bound()
"""Of a tensor about which nothing is known."""
FOREIGN = Bound(rounded=True)
"""The same, of one that a loop or an unknown graph makes."""


@cache
def point(value: float, precision: Precision) -> Bound:
    """Return the bound of a number that is written in the program, as FP32 and FP64 have it."""
    low = high = value
    if abs(value) < Precision.FP32.largest:
        (narrow,) = struct.unpack("f", struct.pack("f", value))
        low, high = min(value, narrow), max(value, narrow)
    return rounded_to(Bound(low, high, value.is_integer() and low == high, 0.0, 0.0), precision)


def rounded_to(bound: Bound, precision: Precision) -> Bound:
    """Return a bound after its numbers are stored in a 16-bit format.

    Args:
        bound: its errors do not count this rounding.
        precision: the format.
    """
    if bound.error == bound.relative == inf:
        return bound
    size = bound.size
    largest_integer = 2.0**precision.digits
    if (bound.integer and size <= largest_integer) or _holds(bound, precision):
        return bound
    error = bound.error + size + TINY * largest_integer if size <= precision.largest else inf
    return replace(bound, error=error, relative=bound.relative + 1.0)


def _holds(bound: Bound, precision: Precision) -> bool:
    """Whether a bound is one number, and the format has exactly this number."""
    value = bound.low
    if value != bound.high:
        return False
    if abs(value) == inf or value == 0:
        return True
    if abs(value) > precision.largest or abs(value) < 2.0**-14:
        return False
    lead = abs(value)
    while lead < 2.0 ** (precision.digits - 1):
        lead *= 2
    while lead >= 2.0**precision.digits:
        lead /= 2
    return lead.is_integer()


def union(*parts: Bound) -> Bound:
    """Return the bound of numbers that are each in one of some tensors."""
    if len(parts) == 1:
        return parts[0]
    return Bound(
        min(part.low for part in parts),
        max(part.high for part in parts),
        all(part.integer for part in parts),
        max(part.error for part in parts),
        max(part.relative for part in parts),
        any(part.rounded for part in parts),
        any(part.weight for part in parts),
    )
