"""The floating-point formats that a plan can choose from."""

from __future__ import annotations

from enum import Enum


class Precision(Enum):
    """A storage or compute format; its value is the name in torch and ONNX."""

    FP16 = "float16"
    BF16 = "bfloat16"
    FP32 = "float32"

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is Precision.FP32 else 2

    @property
    def short(self) -> str:
        """The name used in graph texts: ``f16``, ``bf16`` or ``f32``."""
        return {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[self.value]

    @property
    def digits(self) -> int:
        """Bits of the significand: it holds every integer up to ``2**digits``."""
        return {"float16": 11, "bfloat16": 8}.get(self.value, 24)

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}.get(
            self.value, 3.4028234663852886e38
        )
