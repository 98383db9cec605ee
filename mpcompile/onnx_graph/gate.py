"""The one gate in front of every ONNX file that is read or written."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir


def read_model(path: Path) -> ir.Model:
    """Read a model from a file."""
    return ir.load(path)


def model_of(proto: onnx.ModelProto) -> ir.Model:
    """Return a model in memory."""
    return ir.from_proto(proto)


def write_model(model: ir.Model, path: Path, force: bool = False) -> list[Path]:
    """Write a model."""
    del force
    ir.save(model, path)
    return [path]
