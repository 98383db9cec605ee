"""Compile an FP32 PyTorch training step into mixed precision, ahead of time.

Public names are loaded on first use, so that ``mpcompile --help`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompile.errors import (
        BadInput,
        CannotCapture,
        ChangingNumber,
        CheckFailed,
        CompileError,
        DamagedCheckpoint,
        InexactStep,
        LostProcess,
        SideEffect,
        SkippedSteps,
        Unfaithful,
        UntriedTorch,
        UnusedParameters,
        Unverified,
    )
    from mpcompile.integrations.compiling import compile
    from mpcompile.integrations.rewriting import rewrite
    from mpcompile.numerics.calibration import calibrate
    from mpcompile.numerics.node_errors import check
    from mpcompile.plan.measured import MeasuredOverflow
    from mpcompile.plan.plan import Plan
    from mpcompile.plan.policy import FULL_PRECISION, Level, Policy, UnmatchedOverride
    from mpcompile.plan.ranges import Ranges
    from mpcompile.plan.sensitivity import NarrowedArgument
    from mpcompile.precision import Precision
    from mpcompile.program.workload import Workload
    from mpcompile.step.loss_scale import LossScale
    from mpcompile.step.processes import data_parallel
    from mpcompile.train.train_step import TrainStep

__version__ = "0.1.0"

__all__ = [
    "FULL_PRECISION",
    "BadInput",
    "CannotCapture",
    "ChangingNumber",
    "CheckFailed",
    "CompileError",
    "DamagedCheckpoint",
    "InexactStep",
    "Level",
    "LossScale",
    "LostProcess",
    "MeasuredOverflow",
    "NarrowedArgument",
    "Plan",
    "Policy",
    "Precision",
    "Ranges",
    "SideEffect",
    "SkippedSteps",
    "TrainStep",
    "Unfaithful",
    "UnmatchedOverride",
    "UntriedTorch",
    "UnusedParameters",
    "Unverified",
    "Workload",
    "calibrate",
    "check",
    "compile",
    "data_parallel",
    "rewrite",
]

_HOME = {
    "FULL_PRECISION": "plan.policy",
    "BadInput": "errors",
    "CannotCapture": "errors",
    "ChangingNumber": "errors",
    "CheckFailed": "errors",
    "CompileError": "errors",
    "DamagedCheckpoint": "errors",
    "InexactStep": "errors",
    "Level": "plan.policy",
    "LossScale": "step.loss_scale",
    "LostProcess": "errors",
    "MeasuredOverflow": "plan.measured",
    "NarrowedArgument": "plan.sensitivity",
    "Plan": "plan.plan",
    "Policy": "plan.policy",
    "Precision": "precision",
    "TrainStep": "train.train_step",
    "Ranges": "plan.ranges",
    "UnmatchedOverride": "plan.policy",
    "SideEffect": "errors",
    "SkippedSteps": "errors",
    "Unfaithful": "errors",
    "UntriedTorch": "errors",
    "UnusedParameters": "errors",
    "Unverified": "errors",
    "Workload": "program.workload",
    "calibrate": "numerics.calibration",
    "check": "numerics.node_errors",
    "compile": "integrations.compiling",
    "data_parallel": "step.processes",
    "rewrite": "integrations.rewriting",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mpcompile' has no attribute {name!r}")
    return getattr(import_module(f"mpcompile.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
