"""Copying the weights that ONNX Runtime has trained into torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import onnx_linear_step as linear
from torch import nn

from mpcompile import FULL_PRECISION, BadInput, Workload
from mpcompile.onnx.device_memory import Memory
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.to_torch import load_into
from mpcompile.onnx.train_file import TensorSpec
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import transform
from mpcompile.step.transformed import Choices


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def make(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Return a net with a buffer, and an optimizer of two groups that counts steps."""
    torch.manual_seed(seed)
    # No bias before a batch norm: its gradient is noise, which AdamW turns into whole steps.
    first, rest = nn.Linear(6, 12, bias=False), [nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)]
    model = nn.Sequential(first, *rest)
    return model, optimizer_of(model)


def optimizer_of(model: nn.Sequential, rate: float = 0.02) -> torch.optim.Optimizer:
    first, later = list(model[0].parameters()), list(model[1:].parameters())
    groups: list[dict[str, Any]] = [{"params": first}, {"params": later, "lr": rate}]
    return torch.optim.AdamW(groups, lr=0.01)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, generator=generator)
    return x, torch.randint(0, 3, (8,), generator=generator)


def test_torch_continues_where_the_runtime_stopped(tmp_path: Path) -> None:
    model, optimizer = make(0)
    x, y = batch(0)
    exported = transform(Workload(model, (x, y), loss, optimizer), Choices(policy=FULL_PRECISION))
    path = tmp_path / "train.onnx"
    export_step(exported, path)
    step = OrtTrainStep(path)
    step.set_rate(0.03, 1)
    eager = copy.deepcopy(model)
    by_hand = optimizer_of(eager, 0.03)

    def train(net: nn.Module, rule: torch.optim.Optimizer, seed: int) -> float:
        rule.zero_grad()
        value = loss(net, *batch(seed))
        value.backward()
        rule.step()
        return float(value.detach())

    for seed in range(3):
        assert float(step(*batch(seed))) == pytest.approx(train(eager, by_hand, seed), rel=1e-5)
    other, other_optimizer = make(1)
    load_into(other, step, other_optimizer)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    mine, theirs = other_optimizer.state_dict(), by_hand.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for index, entries in theirs["state"].items():
        assert mine["state"][index].keys() == entries.keys()
        for key, value in entries.items():
            torch.testing.assert_close(mine["state"][index][key], value, rtol=1e-3, atol=1e-6)
    assert [group["lr"] for group in mine["param_groups"]] == [0.01, 0.03]
    for seed in range(3, 6):
        expected = train(eager, by_hand, seed)
        assert train(other, other_optimizer, seed) == pytest.approx(expected, rel=1e-4)


def test_a_step_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    step = OrtTrainStep(linear.write(tmp_path))
    step(*linear.batches(1)[0])
    wide = nn.Linear(5, 1, bias=False)
    before = wide.weight.detach().clone()
    with pytest.raises(
        BadInput, match=r"weight is \[1, 5\] in the model, but \[1, 4\] in the step"
    ):
        load_into(wide, step)
    assert torch.equal(wide.weight, before)
    with pytest.raises(BadInput, match="the model has no weight"):
        load_into(nn.Sequential(nn.Linear(4, 1)), step)
    model = nn.Linear(4, 1)
    before = model.weight.detach().clone()
    with pytest.raises(BadInput, match="the optimizer does not train weight"):
        load_into(model, step, torch.optim.SGD([model.bias], lr=0.1))
    assert torch.equal(model.weight, before)
    load_into(model, step)
    np.testing.assert_array_equal(model.weight.detach().numpy(), step.parameters()["weight"])


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int32", "int64", "bool", "uint8"]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_every_dtype_can_be_written_and_read(dtype: str, shape: tuple[int, ...]) -> None:
    memory = Memory(TensorSpec("x", dtype, shape), "cpu")  # type: ignore[arg-type]
    address = memory.value.data_ptr()
    array = np.ones(shape).astype(memory.read().dtype)
    memory.write(array)
    found = memory.read()
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert memory.value.data_ptr() == address
    assert tuple(memory.value.shape()) == shape
    found[...] = 0
    assert memory.read().tobytes() == array.tobytes()


def test_a_batch_that_is_too_large_for_any_machine_is_refused() -> None:
    with pytest.raises(BadInput, match="not enough memory for x"):
        Memory(TensorSpec("x", "float64", (1 << 40, 1 << 40)), "cpu")
