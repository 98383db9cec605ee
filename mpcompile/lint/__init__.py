"""Find the parts of a program that go wrong or slow down in 16 bits, each with a fix.

In come the rows of a planned program, in one form for torch and ONNX (`program`); out come
findings. A new rule needs a row of `rules`, a function, and a page in ``docs/lint``.

`onnx_program` and `torch_program` are loaded on first use, because ONNX files need no torch.
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
