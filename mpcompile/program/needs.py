"""Needs of torch ops that come before the policy, in tables: the first line that applies counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcompile.plan.needs import FREE, NARROW, Need
from mpcompile.program.node_tensors import count_of

SINGLE = "a single number: nothing to save in 16 bits"
"""Why a 0-d tensor stays in FP32."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about an op that the table of needs uses.

    Attributes:
        reads: ids of the tensors that the op reads.
        writes: ids of the tensors that it writes.
        largest: how many numbers the largest of its results holds; 0 without a result.
        library_call: it computes in FP32 and is not fused with what it reads or writes.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    largest: int
    library_call: bool


NEEDS: tuple[Need[Facts], ...] = (
    # First, because it is true of any op whose results have no dimension.
    Need(FREE, lambda op: bool(op.writes) and op.largest <= 1, SINGLE),
    # A loop would convert in registers; such a call would add a cast for each tensor.
    Need(FREE, lambda op: op.library_call, "a library call that computes and writes FP32"),
    # Last, because it is the most general: an earlier line that applies says more.
    Need(
        NARROW,
        lambda op: bool(op.writes) and not op.reads,
        "made in FP32, not computed from anything",
    ),
)
"""The needs of an op that come before the policy's wish."""

BORDER_NEEDS: tuple[Need[Sequence[Any]], ...] = (
    Need(FREE, lambda values: max(map(count_of, values)) <= 1, SINGLE),
)
"""The needs of a border that come before the policy's wish; the facts are its tensors."""
