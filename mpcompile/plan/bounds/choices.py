"""The bound of what depends on the last digits: waves, steps, comparisons, choices.

Such an op demands FP32 for arguments that no layer has rounded. So these count as exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from math import inf

from mpcompile.plan.bounds.bound import NOTHING, Bound, union
from mpcompile.plan.bounds.functions import ZERO, Args, Row, cast, saturated

_SMALL = 2.01
"""Two roundings, and room for the numbers too small to have all digits."""


def wave(args: Args) -> Bound:
    """A sine or a cosine: what it reads is exact, unless a layer rounded it or `small` let go."""
    x = args.of(0)
    lets_go = x.rounded or is_small_angle(x)
    return saturated(x, -1.0, 1.0, min(x.error, 2 / args.unit) if lets_go else 0.0)


def is_small_angle(x: Bound) -> bool:
    """Whether the error of an angle is small beside 1, the largest sine.

    Two roundings of the format, and the one of the result, stay below four. The same error of an
    exponent is a relative error of the exponential.
    """
    return x.error <= _SMALL


def stepped(function: Callable[[float], float]) -> Row:
    """A function in steps: it demands exact arguments for itself."""

    def row(args: Args) -> Bound:
        x = args.of(0)
        ends = [e if abs(e) == inf else function(e) for e in (x.low, x.high)]
        return saturated(x, ends[0], ends[1], _error_of_choice(x), True)

    return row


def _error_of_choice(*parts: Bound) -> float:
    return inf if any(part.rounded and not part.exact for part in parts) else 0.0


def remainder(args: Args) -> Bound:
    """A remainder with the sign of the divisor."""
    x, divisor = args.of(0), args.of(1)
    integer = x.integer and divisor.integer
    low, high = min(divisor.low, 0.0), max(divisor.high, 0.0)
    return saturated(x, low, high, _error_of_choice(x, divisor), integer)


def modulo(args: Args) -> Bound:
    """A remainder with the sign of the number."""
    x, divisor = args.of(0), args.of(1)
    size = min(divisor.size, x.size)
    integer = x.integer and divisor.integer
    return saturated(x, -size, size, _error_of_choice(x, divisor), integer)


def fraction(args: Args) -> Bound:
    """The part behind the point."""
    return saturated(args.of(0), -1.0, 1.0, _error_of_choice(args.of(0)))


def floor_divide(args: Args) -> Bound:
    """A quotient that is rounded down, or toward 0."""
    x, divisor = args.of(0), args.of(1)
    if not divisor.low == divisor.high > 0 or x.size == inf:
        return replace(NOTHING, rounded=x.rounded or divisor.rounded)
    low, high = math.floor(x.low / divisor.low), math.floor(x.high / divisor.low)
    return saturated(x, low - 1.0, high + 1.0, _error_of_choice(x, divisor), True)


def truth(args: Args) -> Bound:
    """A comparison, or another result that is 0 or 1."""
    error = _error_of_choice(*args.operands)
    whole = union(*args.operands) if args.operands else ZERO
    return saturated(whole, 0.0, 1.0, error, True)


def position(args: Args) -> Bound:
    """A position among numbers."""
    whole = union(*args.operands)
    most = args.length - 1.0 if args.length else inf
    return saturated(whole, 0.0, most, _error_of_choice(args.of(0)), True)


def chosen(args: Args) -> Bound:
    """One of two tensors, by a condition."""
    condition, whole = args.of(0), union(args.of(1), args.of(2))
    wrong = condition.rounded and not condition.exact
    error = inf if wrong else whole.error
    return replace(
        whole,
        error=error,
        relative=inf if wrong else whole.relative,
        rounded=whole.rounded or condition.rounded,
    )


def filled(args: Args) -> Bound:
    """A tensor with a number in some places."""
    x, mask, value = args.of(0), args.of(1), args.of(2)
    return chosen(Args((mask, x, value), args.length, args.unit))


def cast_exactly(args: Args) -> Bound:
    """A cast of FP32 to another format, which demands FP32 for what it reads."""
    return replace(cast(args), error=_error_of_choice(args.of(0)))
