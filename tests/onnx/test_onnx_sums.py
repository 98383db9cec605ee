"""Gradients that are sums of thousands of terms are right in ONNX Runtime too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from programs.long_sums.programs import PROGRAMS

from bench.numerics.sums import LIMIT, error, exact_gradients, loss
from mpcompile import LossScale, Precision, Workload
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import transform
from mpcompile.step.transformed import Choices


@pytest.mark.parametrize("name", ["index", "pad 1d, replicate one element"])
def test_the_update_of_an_exported_step_is_right(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has no ScatterND that adds FP16 on a CPU, so the sum must be FP32 there."""
    model, batch = PROGRAMS[name]()
    mine = copy.deepcopy(model)
    workload = Workload(mine, (batch,), loss, torch.optim.SGD(mine.parameters(), lr=1.0))
    choices = Choices(loss_scale=LossScale.static(1024.0), verify=False)
    export_step(transform(workload, choices), tmp_path / "train.onnx")
    step = OrtTrainStep(tmp_path / "train.onnx")
    before = {name: torch.tensor(value).double() for name, value in step.parameters().items()}
    step(batch.numpy())
    found = {
        name: before[name] - torch.tensor(value).double()
        for name, value in step.parameters().items()
    }
    assert error(found, exact_gradients(model, batch)) <= LIMIT[Precision.FP16]
