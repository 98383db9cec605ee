"""Compile an FP32 PyTorch training step into mixed precision, ahead of time.

Public names are loaded on first use, so that ``mpcompile --help`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompile.calibration import calibrate
    from mpcompile.errors import (
        BadInput,
        CannotCapture,
        CheckFailed,
        CompileError,
        DamagedCheckpoint,
        LostProcess,
    )
    from mpcompile.loss_scale import LossScale
    from mpcompile.measured import MeasuredOverflow
    from mpcompile.node_errors import check
    from mpcompile.pipeline import compile
    from mpcompile.plan import Plan
    from mpcompile.policy import FULL_PRECISION, Level, Policy, UnmatchedOverride
    from mpcompile.precision import Precision
    from mpcompile.processes import data_parallel
    from mpcompile.ranges import Ranges
    from mpcompile.rewriting import rewrite
    from mpcompile.train_step import TrainStep
    from mpcompile.workload import Workload

__version__ = "0.1.0"

__all__ = [
    "FULL_PRECISION",
    "BadInput",
    "CannotCapture",
    "CheckFailed",
    "CompileError",
    "DamagedCheckpoint",
    "Level",
    "LossScale",
    "LostProcess",
    "MeasuredOverflow",
    "Plan",
    "Policy",
    "Precision",
    "Ranges",
    "TrainStep",
    "UnmatchedOverride",
    "Workload",
    "calibrate",
    "check",
    "compile",
    "data_parallel",
    "rewrite",
]

_HOME = {
    "FULL_PRECISION": "policy",
    "BadInput": "errors",
    "CannotCapture": "errors",
    "CheckFailed": "errors",
    "CompileError": "errors",
    "DamagedCheckpoint": "errors",
    "Level": "policy",
    "LossScale": "loss_scale",
    "LostProcess": "errors",
    "MeasuredOverflow": "measured",
    "Plan": "plan",
    "Policy": "policy",
    "Precision": "precision",
    "TrainStep": "train_step",
    "Ranges": "ranges",
    "UnmatchedOverride": "policy",
    "Workload": "workload",
    "calibrate": "calibration",
    "check": "node_errors",
    "compile": "pipeline",
    "data_parallel": "processes",
    "rewrite": "rewriting",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mpcompile' has no attribute {name!r}")
    return getattr(import_module(f"mpcompile.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
