"""Which ops have a 16-bit kernel on which target."""

from __future__ import annotations

from enum import Enum

from mpcompile.onnx_graph.nest import Nest
from mpcompile.precision import Precision


class Target(Enum):
    """Where a rewritten graph shall run; the value is its name in flags."""

    CUDA = "cuda"
    CPU = "cpu"
    ANY = "any"


def lacking(nest: Nest, opset: int, precision: Precision, target: Target) -> dict[str, str]:
    """Return, per node id, why no kernel of the target takes the format."""
    del nest, opset, precision, target
    return {}
