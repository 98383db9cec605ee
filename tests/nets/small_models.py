"""Small versions of the models of ``models/``, with equal weights and data on all devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

from root import ROOT

import mpcompile
from mpcompile import LossScale, Policy, TrainStep, Workload
from mpcompile.program.workload import module_at

GPU = "cuda"
MODELS = ROOT / "models"
Backend = Literal["interpreter", "inductor"]
CUTS: dict[str, Callable[[Any], Any]] = {
    "gpt": lambda module: module.SMALL,
    # Without dropout, because CPU and GPU draw other random numbers, and at a tenth of the model's
    # rate, because at the full rate the first steps jump and amplify any rounding.
    "lstm": lambda module: replace(module.SMALL, dropout=0.0, rate=0.002, vocabulary=1024),
    # Cut from the full size, which needs no data set and has the pooling stem; a tenth of its rate.
    "resnet": lambda module: replace(
        module.FULL,
        image=(3, 64, 64),
        classes=10,
        width=16,
        blocks=(1, 1, 1, 1),
        rate=0.0025,
        batch=32,
    ),
    "bert": lambda module: replace(module.SMALL, layers=2),
    "dcgan": lambda module: module.SMALL,
    "unet": lambda module: replace(module.FULL, image=(3, 32, 32), classes=5, width=16, depth=2),
    "tacotron": lambda module: replace(module.SMALL, letters=8, frames=8),
}


def workload(name: str, device: str) -> Workload:
    """Build a small model with the same weights and data on every device."""
    module = module_at(MODELS / f"{name}.py")
    with patch.dict(os.environ, {"DEVICE": device}):
        made: Workload = module.workload(config=CUTS[name](module), seed=0)
    return made


def compiled(
    made: Workload,
    backend: Backend,
    policy: Policy | None = None,
    loss_scale: LossScale | None = None,
) -> TrainStep:
    assert made.loss is not None
    assert made.optimizer is not None
    return mpcompile.compile(
        made.model,
        made.loss,
        made.optimizer,
        made.batch,
        policy=policy,
        loss_scale=loss_scale,
        backend=backend,
    )
