"""What a Python program calls: `compile`, `rewrite`, and mixed precision inside other tools.

In comes a model with its loss and optimizer, or a graph that another tool has captured
(`torch.compile`, `torch.export`, pipelines); out comes a step, or the same graph with the plan's
casts. With a graph, autograd, optimizer and loss scale stay with the caller.

`exported_program` is loaded on first use, so that a tool that rewrites ONNX files needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompile.integrations import exported_program

__all__ = ["exported_program"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
