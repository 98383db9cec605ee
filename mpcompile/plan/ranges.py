"""Magnitudes and exponents of tensors, measured on real batches, forward and backward."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.fingerprint import Graph
from mpcompile.validation import read_document, read_json, without_head

VERSION = 3
BUDGET = 8
"""The default of `Ranges.precision_budget` in roundings of the format, see ``docs/values.md``."""
NORMAL, SMALLEST = -14, -24
"""Exponents of the smallest normal and of the smallest FP16 number."""
LOWEST, HIGHEST = -127, 127
"""Exponents of FP32; all its subnormal numbers count as `LOWEST`."""
_AGAIN = "run `mpcompile calibrate` again"

_Count = Annotated[int, Field(ge=0, le=1 << 62)]
_Exponent = Annotated[int, Field(ge=LOWEST, le=HIGHEST)]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers of one tensor, over all batches.

    Attributes:
        largest_finite: the largest magnitude without infinities.
        count: how many numbers were measured.
        zeros: how many of them were zero.
        nonfinite: how many of them were infinite or not a number.
        exponents: per exponent e that occurred, in ascending order, how many magnitudes were in
            ``[2**e, 2**(e + 1))``.
    """

    largest_finite: _Size
    count: _Count
    zeros: _Count
    nonfinite: _Count
    exponents: tuple[tuple[_Exponent, _Count], ...]

    def __post_init__(self) -> None:
        known = [exponent for exponent, _ in self.exponents]
        finite = sum(count for _, count in self.exponents)
        if known != sorted(set(known)) or not all(count for _, count in self.exponents):
            raise ValueError("its exponents are not in ascending order, or one has no numbers")
        if finite + self.zeros + self.nonfinite != self.count:
            raise ValueError("its counts do not add up")
        if (max(known) if known else None) != _exponent(self.largest_finite):
            raise ValueError("its largest number is not among its exponents")

    @property
    def largest(self) -> float:
        """The largest magnitude; infinite if a number was infinite or not a number."""
        return math.inf if self.nonfinite else self.largest_finite

    @property
    def share_of_zeros(self) -> float:
        """The share of numbers that were zero."""
        return self.zeros / self.count if self.count else 0.0

    def share_below(self, exponent: float) -> float:
        """Return the share of the numbers other than zero that were less than ``2**exponent``.

        An exponent between two integers counts as the lower one.
        """
        others = self.count - self.zeros
        below = sum(count for known, count in self.exponents if known < math.floor(exponent))
        return below / others if others else 0.0

    @property
    def share_below_normal(self) -> float:
        """The share of the nonzero numbers that FP16 holds with fewer digits or not at all."""
        return self.share_below(NORMAL)

    @property
    def share_below_smallest(self) -> float:
        """The share of the numbers other than zero that are below the smallest FP16 number."""
        return self.share_below(SMALLEST)

    def share_lost(self, scale: float) -> float:
        """Return `share_below_smallest` of the tensor times a factor, such as a loss scale."""
        return self.share_below(SMALLEST - math.log2(scale))

    def joined(self, other: Range) -> Range:
        """Return the range of both measurements together."""
        exponents = Counter(dict(self.exponents))
        exponents.update(dict(other.exponents))
        return Range(
            largest_finite=max(self.largest_finite, other.largest_finite),
            count=self.count + other.count,
            zeros=self.zeros + other.zeros,
            nonfinite=self.nonfinite + other.nonfinite,
            exponents=tuple(sorted(exponents.items())),
        )


def _exponent(magnitude: float) -> int | None:
    return max(math.frexp(magnitude)[1] - 1, LOWEST) if magnitude else None


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What rounding a tensor to 16 bits does to the sensitive op that it hurts most.

    Attributes:
        reader: the op.
        error: the largest difference of its result over its largest number; for integers and
            truth values the share that differs.
        gradient: the same of the gradient that it passes to the tensor.
    """

    reader: str
    error: _Size
    gradient: _Size = 0.0

    @property
    def worst(self) -> float:
        """The larger of the two errors."""
        return max(self.error, self.gradient)


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of the tensors of one program, and how the planner must use them.

    Attributes:
        fingerprint: fingerprint of the measured tensors, see `tensors_of`.
        batches: how many batches were run.
        values: per tensor of the forward graph its range.
        gradients: per tensor the range of the gradient of the unscaled loss with respect to it.
        margin_bits: a tensor is kept in FP32 if it came closer to the largest 16-bit number than
            a factor of ``2**margin_bits``.
        release: whether ops whose results can grow but did not may be stored in 16 bits.
        narrowings: per tensor that a sensitive op reads, and per format (``f16``, ``bf16``), what
            rounding this tensor alone does to that op.
        precision_budget: a tensor whose rounding does more than this is kept in FP32; None:
            `BUDGET` roundings of the format, which is 0.0039 for FP16 and 0.031 for BF16.
    """

    fingerprint: str
    batches: Annotated[int, Field(ge=1)]
    values: Mapping[str, Range] = field(default_factory=dict)
    gradients: Mapping[str, Range] = field(default_factory=dict)
    margin_bits: Annotated[int, Field(ge=0, le=15)] = 2
    release: bool = False
    narrowings: Mapping[str, Mapping[str, Narrowing]] = field(default_factory=dict)
    precision_budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def to_json(self) -> str:
        """Write the ranges as a JSON document; `from_json` reads it back."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes, where: str | None = None) -> Ranges:
        """Read ranges from an untrusted source.

        Raises:
            BadInput: the text is no such document, or it contradicts itself.
        """
        file = read_json(_File, text, "this is not a file of ranges", where, _AGAIN)
        return without_head(file, Ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(Ranges):
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Literal[2, 3]


def read_ranges(path: Path) -> Ranges:
    """Read ranges from a file; raises BadInput if it holds none, see `Ranges.from_json`."""
    return Ranges.from_json(read_document(path, "ranges.json", _AGAIN), str(path))


def tensors_of(flow: Dataflow) -> str:
    """Return the fingerprint of a graph's tensors: their names and sizes.

    A name says which op of its kind made a tensor. The policy has no effect on it.
    """
    return Graph(elements={tensor.id: tensor.elements for tensor in flow.tensors}).fingerprint
