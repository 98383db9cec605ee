"""Find in a program what goes wrong, or slows down, in 16 bits; each finding with its fix.

In comes a planned program as rows that are the same for torch and ONNX (`program`); out go
findings. A new rule is a row of `rules`, a function, and a page in ``docs/lint``.

`onnx_program` and `torch_program` are loaded on first use: ONNX files need no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompile.lint import onnx_program, torch_program

__all__ = ["onnx_program", "torch_program"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
