"""What tensors hold: magnitudes and exponents measured on real batches, forward and backward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mpcompile.errors import BadInput
from mpcompile.validation import sentence

VERSION = 1
NORMAL = 2.0**-14
"""The smallest normal FP16 number."""
SMALLEST = 2.0**-24
"""The smallest FP16 number; half of it rounds to zero."""
LOWEST, HIGHEST = -40, 20
"""The exponents of a histogram; those beyond count at its ends."""

_Count = Annotated[int, Field(ge=0)]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=True)]


@dataclass(frozen=True, slots=True)
class Range:
    """What one tensor held.

    Attributes:
        largest: the largest magnitude; infinite if a value was infinite or not a number.
        count: how many numbers were looked at.
        zeros: how many of them were 0.
        below_normal: how many others were below 2**-14, the smallest normal FP16 number.
        below_smallest: how many of these were below 2**-24, the smallest FP16 number.
        exponents: how many had the exponent `LOWEST`, `LOWEST` + 1 ... `HIGHEST`, where a number
            with exponent e lies in [2**e, 2**(e + 1)); zeros and non-finite numbers not counted.
    """

    largest: _Size
    count: _Count
    zeros: _Count
    below_normal: _Count
    below_smallest: _Count
    exponents: tuple[_Count, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> Range:
        """Measure a floating-point tensor of any shape, on its own device."""
        size = tensor.detach().abs().float().reshape(-1)
        finite = torch.isfinite(size)
        sound = torch.where(finite, size, 0.0)
        exponent = torch.frexp(sound).exponent - 1
        bins = (exponent.clamp(LOWEST, HIGHEST) - LOWEST)[sound > 0].long()
        nonzero = size > 0
        facts = torch.stack(
            [
                torch.where(finite.all(), sound.max(), torch.inf)
                if size.numel()
                else size.new_zeros(()),
                (size == 0).sum(),
                (nonzero & (size < NORMAL)).sum(),
                (nonzero & (size < SMALLEST)).sum(),
            ]
        ).tolist()
        histogram = torch.bincount(bins, minlength=HIGHEST - LOWEST + 1)
        return Range(
            largest=facts[0],
            count=size.numel(),
            zeros=int(facts[1]),
            below_normal=int(facts[2]),
            below_smallest=int(facts[3]),
            exponents=tuple(histogram.tolist()),
        )

    def share(self, limit: float) -> float:
        """Return the share of numbers below `NORMAL` or `SMALLEST` that are not 0."""
        below = {NORMAL: self.below_normal, SMALLEST: self.below_smallest}[limit]
        return below / self.count if self.count else 0.0

    def joined(self, other: Range) -> Range:
        """Return the range of what both have measured."""
        return Range(
            max(self.largest, other.largest),
            self.count + other.count,
            self.zeros + other.zeros,
            self.below_normal + other.below_normal,
            self.below_smallest + other.below_smallest,
            tuple(a + b for a, b in zip(self.exponents, other.exponents, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Ranges:
    """What the tensors of one program held, and how the planner shall read it.

    Attributes:
        fingerprint: of the graph that was measured (`mpcompile.fingerprint`).
        batches: how many batches were run.
        values: per tensor of the forward graph what it held.
        gradients: per tensor what the gradient of the unscaled loss with respect to it held.
        margin_bits: a tensor is kept in FP32 if it came closer to the largest 16-bit number than
            a factor of ``2**margin_bits``.
        release: whether ops whose results can grow may be stored in 16 bits where they did not.
    """

    fingerprint: str
    batches: _Count
    values: Mapping[str, Range] = field(default_factory=dict)
    gradients: Mapping[str, Range] = field(default_factory=dict)
    margin_bits: Annotated[int, Field(ge=0, le=15)] = 2
    release: bool = False

    def to_json(self) -> str:
        """Write the ranges as a JSON document; `from_json` reads it back."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str | bytes, where: str = "") -> Ranges:
        """Read ranges that may come from anyone.

        Raises:
            BadInput: the text is no such document.
        """
        try:
            file = _format().validate_json(text)
        except ValidationError as error:
            raise BadInput(
                f"these are no ranges: {sentence(error)}", where, "run `mpcompile calibrate` again"
            ) from error
        return Ranges(
            file.fingerprint,
            file.batches,
            file.values,
            file.gradients,
            file.margin_bits,
            file.release,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(Ranges):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]


@cache
def _format() -> TypeAdapter[Any]:
    return TypeAdapter(_File)


def read_ranges(path: Path) -> Ranges:
    """Read ranges from a file; raises BadInput if it holds none, see `Ranges.from_json`."""
    if not path.is_file():
        raise BadInput("there is no such file", str(path), "give the path of a ranges.json")
    return Ranges.from_json(path.read_bytes(), str(path))


def join(ranges: Iterable[Mapping[str, Range]]) -> dict[str, Range]:
    """Return per tensor the range over several batches."""
    joined: dict[str, Range] = {}
    for batch in ranges:
        for name, found in batch.items():
            joined[name] = joined[name].joined(found) if name in joined else found
    return joined
