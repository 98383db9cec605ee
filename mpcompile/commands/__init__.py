"""The work of the commands, one file per command.

In come options that the command line has read (`mpcompile.options`) and the name of a program, a
model or a plan; out go sentences on the terminal, documents and an exit code. `plan_inputs` and
``load_*.py`` read the inputs of a command, `terminal` prints for people.

A file is loaded on first use, so that a command loads only the modules it needs: help, wrong flags
and ONNX files need no torch. Callers write ``commands.check.check(...)``, which type checkers and
the linter of layers follow. No other file of the package loads its modules late.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompile.commands import (
        bench,
        calibrate,
        check,
        diff,
        explain,
        export,
        gradients,
        inspect,
        lint,
        load_plan,
        onnx_calibrate,
        onnx_rewrite,
        onnx_run,
        plan_inputs,
        reduce,
        report,
        run,
        schema,
        transform,
        tune,
    )

__all__ = [
    "bench",
    "calibrate",
    "check",
    "diff",
    "explain",
    "export",
    "gradients",
    "inspect",
    "lint",
    "load_plan",
    "onnx_calibrate",
    "onnx_rewrite",
    "onnx_run",
    "plan_inputs",
    "reduce",
    "report",
    "run",
    "schema",
    "transform",
    "tune",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
