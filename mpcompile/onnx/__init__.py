"""Rewrite ONNX graphs, export training steps to ONNX, and run them in stock ONNX Runtime.

In come an ONNX graph or a step graph; out come a rewritten graph (`rewrite`), a ``train.onnx``
(`step_export`), or steps run by the runtime (`train_step`). Public names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "MixedPrecision": "mixed_precision_pass",
    "OrtTrainStep": "train_step",
    "Rewritten": "rewrite",
    "calibrate": "measure",
    "compare": "comparison",
    "export_forward": "forward_export",
    "export_step": "step_export",
    "load_into": "to_torch",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mpcompile.onnx' has no attribute {name!r}")
    return getattr(import_module(f"mpcompile.onnx.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
