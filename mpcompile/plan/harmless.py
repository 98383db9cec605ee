"""Tell from bounds which arguments of sensitive ops 16 bits cannot hurt."""

from __future__ import annotations

from collections.abc import Mapping

from mpcompile.plan.bounds.bound import NOTHING, Bound
from mpcompile.plan.bounds.choices import is_small_angle
from mpcompile.plan.dataflow import Op

_ANGLES = frozenset("sin cos exp exp2 expm1 Sin Cos Exp".split())
"""Ops whose result is off by no more than their argument, beside 1 or beside the result."""
_SUMS = frozenset("add sub subtract rsub Add Sub".split())
_ROUNDINGS = 3.01
"""The error of a sum that 16 bits may make, its own rounding included, in roundings."""


def is_harmless(op: Op, name: str, bounds: Mapping[str, Bound]) -> bool:
    """Whether rounding an argument of a sensitive op changes its result by a few roundings at most.

    An argument that 16 bits hold exactly is harmless for every op: small integers, and what is
    computed from them. So is an angle of a size of about 1 or 2, and a term of a sum or a
    difference that cannot be much smaller than its terms.

    Args:
        op: the op.
        name: the tensor that it reads.
        bounds: the bounds of all tensors.
    """
    bound = bounds.get(name, NOTHING)
    if bound.exact:
        return True
    if op.kind in _ANGLES:
        return is_small_angle(bound)
    if op.kind in _SUMS and op.writes:
        result = bounds.get(op.writes[0], NOTHING)
        return result.error <= _ROUNDINGS * result.least
    return False
