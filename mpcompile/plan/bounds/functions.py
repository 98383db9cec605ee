"""The bound of a result from the bounds of its operands, a function for each kind of op.

A function gets the operands in the order of the op's schema; an operand that is no tensor and no
number is `NOTHING`. It returns the bound before the result is stored: `walk` adds what storing
rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TypeAlias

from mpcompile.plan.bounds.bound import NOTHING, TINY, Bound, union

_WIDER = 2.0**-20
"""The share by which an interval grows for the rounding of FP32."""
ONE = Bound(1.0, 1.0, True, 0.0, 0.0)
ZERO = Bound(0.0, 0.0, True, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Args:
    """What a row may use.

    Attributes:
        operands: the bounds of the arguments; a number is an interval of one point.
        length: see `Step.length`.
        unit: the rounding of the format, the unit of the errors.
    """

    operands: tuple[Bound, ...]
    length: int
    unit: float

    def of(self, index: int) -> Bound:
        """Return the bound of an operand; `NOTHING` if it is left out."""
        return self.operands[index] if index < len(self.operands) else NOTHING


Row: TypeAlias = Callable[[Args], Bound]


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _make(low: float, high: float, like: Bound, error: float, integer: bool = False) -> Bound:
    """Return the bound of computed numbers: wider by FP32's rounding, its size at no limit."""
    if math.isnan(low) or math.isnan(high) or math.isnan(error):
        low, high, error = -inf, inf, inf
    if not integer or max(abs(low), abs(high)) > 2.0**24:
        low, high = low - _WIDER * abs(low), high + _WIDER * abs(high)
    return Bound(low, high, integer, error, inf, like.rounded, like.weight)


def _add(a: Bound, b: Bound) -> Bound:
    both = union(a, b)
    return _make(a.low + b.low, a.high + b.high, both, a.error + b.error, both.integer)


def negative(a: Bound) -> Bound:
    """The numbers with the other sign."""
    return replace(a, low=-a.high, high=-a.low)


def product(a: Bound, b: Bound) -> Bound:
    """A product."""
    both = union(a, b)
    corners = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    error = _times(a.size, b.error) + _times(b.size, a.error)
    return _make(min(corners), max(corners), both, error, both.integer)


def quotient(args: Args) -> Bound:
    """A quotient; nothing is known if the divisor can be near 0."""
    a, b = args.of(0), args.of(1)
    if not b.least or _times(b.error, args.unit) > b.least / 4:
        return replace(NOTHING, rounded=a.rounded or b.rounded)
    inverse = _make(1 / b.high, 1 / b.low, b, 4 / 3 * b.error / b.least**2)
    return product(a, inverse)


def summed(args: Args) -> Bound:
    """A sum or a cumulative sum of up to `length` numbers, from one of them on."""
    x, count = args.of(0), args.length or inf
    low, high = min(x.low, _times(x.low, count)), max(x.high, _times(x.high, count))
    low, high = (low, high) if x.integer else _added_up(low, high, count)
    return _make(low, high, x, _times(x.error, count), x.integer)


def _added_up(low: float, high: float, count: float) -> tuple[float, float]:
    """Return an interval that is wider by what as many additions in FP32 can round."""
    size = max(abs(low), abs(high)) * min(count, 2.0**23) * 2.0**-23
    return (low - size, high + size) if size < inf else (-inf, inf)


def mean(args: Args) -> Bound:
    """A mean."""
    x = args.of(0)
    low, high = _added_up(x.low, x.high, args.length or inf)
    return _make(low, high, x, x.error)


def between(low: float, high: float, relative: float, slope: float = 1.0) -> Row:
    """A function that grows from `low` to `high`.

    Args:
        low: of all results.
        high: of all results.
        relative: no less than its slope at x times x.
        slope: no less than its slope.
    """

    def row(args: Args) -> Bound:
        x = args.of(0)
        once = relative * x.relative + TINY / args.unit
        return saturated(x, low, high, min(slope * x.error, once))

    return row


def saturated(x: Bound, low: float, high: float, error: float, integer: bool = False) -> Bound:
    """Numbers between two limits, computed from a tensor."""
    return Bound(low, high, integer, error, inf, x.rounded, x.weight)


def clamped(x: Bound, low: Bound | None, high: Bound | None, unit: float) -> Bound:
    """The bound of numbers between two bounds, each None if it is left out."""
    ends = [end for end in (low, high) if end is not None]
    least, most = x.low, x.high
    if low is not None:
        least, most = max(least, low.low), max(most, low.high)
    if high is not None:
        least, most = min(least, high.low), min(most, high.high)
    whole = union(x, *ends)
    error, size = x.error, max(abs(least), abs(most))
    if size < inf:
        error = min(error, _times(x.relative, size) + TINY / unit)
    error = max([error, *(end.error for end in ends)])
    return replace(whole, low=least, high=most, error=error)


def clamp(args: Args) -> Bound:
    """A clamp between two operands, each of which may be left out."""
    low, high = (None if end is NOTHING else end for end in (args.of(1), args.of(2)))
    return clamped(args.of(0), low, high, args.unit)


def maximum(args: Args) -> Bound:
    """The larger of two numbers."""
    parts = args.operands
    whole = union(*parts)
    return replace(whole, low=max(part.low for part in parts))


def minimum(args: Args) -> Bound:
    """The smaller of two numbers."""
    parts = args.operands
    whole = union(*parts)
    return replace(whole, high=min(part.high for part in parts))


def relu(args: Args) -> Bound:
    """No number below 0."""
    x = args.of(0)
    return replace(x, low=max(x.low, 0.0), high=max(x.high, 0.0))


def magnitude(args: Args) -> Bound:
    """The numbers without their sign."""
    x = args.of(0)
    return replace(x, low=x.least, high=x.size)


def square(args: Args) -> Bound:
    """A square."""
    x = args.of(0)
    error = _times(2 * x.size + _times(x.error, args.unit), x.error)
    return _make(x.least**2, x.size**2, x, error, x.integer)


def power(args: Args) -> Bound:
    """A power; only squares are known."""
    exponent = args.of(1)
    if exponent.low == exponent.high == 2:
        return square(args)
    return replace(NOTHING, rounded=args.of(0).rounded)


def root(args: Args) -> Bound:
    """A square root."""
    x = args.of(0)
    low, high = math.sqrt(max(x.low, 0.0)), math.sqrt(max(x.high, 0.0))
    error = math.sqrt(x.error / args.unit)
    return _make(low, high, x, min(error, x.error / low) if low else error)


def exponential(args: Args) -> Bound:
    """An exponential of any base up to e, or less 1."""
    x = args.of(0)
    # exp2 and expm1 are not larger, except for the numbers below 0 of expm1.
    if x.high > 80 or _times(x.error, args.unit) > 0.5:
        return _make(-1.0, inf, x, inf)
    error = math.exp(x.high + x.error * args.unit) * x.error
    return _make(-1.0, math.exp(max(x.high, 0.0)), x, error)


def normed(args: Args) -> Bound:
    """A norm layer; with a weight or a bias nothing is known, as they are trained."""
    x = args.of(0)
    trained = any(part is not NOTHING for part in args.operands[2:4])
    size = inf if trained or not args.length else math.sqrt(args.length) * (1 + _WIDER)
    return saturated(x, -size, size, 0.0 if x.exact and not trained else inf)


def softmax(args: Args) -> Bound:
    """A softmax."""
    x = args.of(0)
    # A difference of arguments is a relative error of the result, which is at most 1.
    return saturated(x, 0.0, 1.0, 2 * x.error)


def dropped(args: Args) -> Bound:
    """A dropout."""
    x, share = args.of(0), args.of(1)
    if not share.high < 1:
        return replace(NOTHING, rounded=x.rounded)
    scale = Bound(1.0, 1 / (1 - share.high), False, 0.0, 0.0)
    return union(product(x, scale), replace(ZERO, rounded=x.rounded))


def layer(args: Args) -> Bound:
    """A Tensor-Core op: if it is a layer, its result is rounded once beside its own error."""
    parts = args.operands
    is_layer = not parts or any(part.weight or part.rounded for part in parts)
    return replace(NOTHING, relative=0.0 if is_layer else inf, rounded=is_layer)


def given(args: Args) -> Bound:
    """Numbers from the first operand to the second."""
    low, high = args.of(0), args.of(1)
    return Bound(low.low, high.high, low.integer and high.integer, 0.0, 0.0)


def held(args: Args) -> Bound:
    """Numbers of a constant or a buffer: least, largest, and whether all are integers."""
    return Bound(args.of(0).low, args.of(1).high, args.of(2).low == 1, 0.0, 0.0)


def counted(args: Args) -> Bound:
    """A range: start, end and step."""
    ends = args.operands or (NOTHING,)
    if len(ends) == 1:
        ends = (ZERO, *ends)
    start, end, step = (*ends, ONE)[:3]
    integer = start.integer and step.integer
    low, high = min(start.low, end.low), max(start.high, end.high)
    if integer and step.low == step.high and end.integer and high > low:
        low, high = (low, high - 1) if step.low > 0 else (low + 1, high)
    return _make(low, high, union(start, step), 0.0, integer)


def same(args: Args) -> Bound:
    """The first operand."""
    return args.of(0)


def cast(args: Args) -> Bound:
    """A cast to another floating-point format of at least 32 bits, or from integers."""
    x = args.of(0)
    if x.integer and x.size <= 2.0**24:
        return x
    return replace(x, low=x.low - _WIDER * abs(x.low), high=x.high + _WIDER * abs(x.high))


def any_of(*which: int) -> Row:
    """Return the row of an op whose result is made of some of its operands."""

    def row(args: Args) -> Bound:
        return union(*(args.of(index) for index in which))

    return row


def with_zero(args: Args) -> Bound:
    """The first operand, or 0."""
    return union(args.of(0), replace(ZERO, rounded=args.of(0).rounded))


def constant(low: float, high: float, integer: bool = False) -> Row:
    """Return the row of an op that makes numbers between two."""
    return lambda _: Bound(low, high, integer, 0.0, 0.0)


def scaled_add(sign: float) -> Row:
    """Return the row of a sum or a difference, whose second operand may have a factor."""

    def row(args: Args) -> Bound:
        b, factor = args.of(1), args.of(2)
        if factor is not NOTHING:
            b = product(b, factor)
        return _add(args.of(0), b if sign > 0 else negative(b))

    return row


def difference_from(args: Args) -> Bound:
    """A difference with the operands the other way round."""
    a, factor = args.of(0), args.of(2)
    return _add(args.of(1), negative(a if factor is NOTHING else product(a, factor)))


def with_dip(least: float, slope: float) -> Row:
    """An activation like GELU: x for large x, near 0 for small x, with a dip below 0."""

    def row(args: Args) -> Bound:
        x = args.of(0)
        return _make(least, max(x.high, 0.0), x, _times(slope, x.error))

    return row
