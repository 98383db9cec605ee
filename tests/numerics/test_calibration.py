"""Calibration against eager PyTorch, and the objects that it must not change."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs.graphs import convolution
from programs.tall import Tall, loss, workload
from torch import nn

import mpcompile
from mpcompile.errors import BadInput
from mpcompile.program.workload import Workload


def plain(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), target)


def test_values_and_gradients_are_those_of_eager_pytorch_over_all_batches() -> None:
    model = Tall()
    work = replace(workload(model), loss=plain)
    found = mpcompile.calibrate(work)
    assert work.data is not None
    made: dict[str, list[torch.Tensor]] = {"linear": [], "relu": [], "linear_1": []}
    weights: list[torch.Tensor] = []
    for x, target in work.data:
        model.zero_grad()
        hidden = model.rise(x)
        parts = (hidden, torch.relu(hidden), model.fall(torch.relu(hidden)))
        for name, value in zip(made, parts, strict=True):
            made[name].append(value.detach())
        plain(model, x, target).backward()
        assert model.rise.weight.grad is not None
        weights.append(model.rise.weight.grad.clone())
    for name, batches in made.items():
        values = torch.stack(batches)
        assert found.values[name].count == values.numel()
        assert found.values[name].largest == float(values.abs().max())
        assert found.values[name].zeros == int((values == 0).sum())
    gradients = torch.stack(weights)
    held = found.gradients["p_model_rise_weight"]
    assert held.largest == float(gradients.abs().max())
    small = ((gradients != 0) & (gradients.abs() < 2.0**-14)).sum() / (gradients != 0).sum()
    assert held.share_below_normal == pytest.approx(float(small))


def test_the_gradient_by_an_activation_is_measured() -> None:
    work = replace(workload(), loss=plain)
    found = mpcompile.calibrate(work, batches=1)
    x, target = work.batch
    model = work.model
    hidden = model.rise(x).detach().requires_grad_()  # type: ignore[operator]
    value = nn.functional.cross_entropy(model.fall(torch.relu(hidden)), target)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(value, hidden)
    assert found.gradients["linear"].largest == float(gradient.abs().max())
    assert found.gradients["cross_entropy_loss"].largest == 1.0
    assert "batch_0" in found.values
    assert "batch_0" not in found.gradients


def test_the_users_objects_do_not_change() -> None:
    work = convolution()
    assert work.optimizer is not None

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(3):
            drawn = random.random() + float(np.random.rand())
            yield torch.randn(2, 3, 5, 5) * drawn, torch.tensor([0, 2])

    loss(nn.Sequential(work.model, nn.Dropout()), *work.batch).backward()
    work.optimizer.step()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = copy.deepcopy((work.model.state_dict(), work.optimizer.state_dict()))
    gradients = [parameter.grad.clone() for parameter in work.model.parameters()]  # type: ignore[union-attr]
    generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    first = mpcompile.calibrate(replace(work, data=batches()))
    again = mpcompile.calibrate(replace(work, data=batches()))
    assert first == again
    after = (work.model.state_dict(), work.optimizer.state_dict())
    assert str(before) == str(after)
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    assert all(
        torch.equal(gradient, parameter.grad)  # type: ignore[arg-type]
        for gradient, parameter in zip(gradients, work.model.parameters(), strict=True)
    )
    assert random.getstate() == generators[0]
    assert str(np.random.get_state()) == str(generators[1])
    assert torch.equal(torch.get_rng_state(), generators[2])


def test_statistics_go_from_batch_to_batch() -> None:
    work = convolution()
    batches = [(torch.randn(2, 3, 5, 5) * 10**power, torch.tensor([0, 2])) for power in range(3)]
    found = mpcompile.calibrate(replace(work, data=batches))
    model = copy.deepcopy(work.model)
    seen = [model[1].running_var.clone()]  # type: ignore[index]
    for x, _ in batches[:2]:
        model(x)
        seen.append(model[1].running_var.clone())  # type: ignore[index]
    held = found.values["b_model_1_running_var"]
    assert held.largest == pytest.approx(max(float(value.max()) for value in seen), rel=1e-6)


def test_without_data_the_example_batch_and_without_a_loss_no_gradients() -> None:
    work = workload()
    assert mpcompile.calibrate(replace(work, data=None)).batches == 1
    forward = mpcompile.calibrate(Workload(work.model, work.batch[:1]))
    assert forward.gradients == {}
    assert forward.values["linear"].largest > 65504


def test_only_what_the_optimizer_trains_has_gradients() -> None:
    work = workload()
    model = work.model
    model.register_parameter("counts", nn.Parameter(torch.tensor([2]), requires_grad=False))
    model.rise.requires_grad_(False)
    optimizer = torch.optim.SGD(model.fall.parameters(), lr=0.1)  # type: ignore[union-attr]

    def counted(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return plain(model, x * model.counts, target)  # type: ignore[operator]

    found = mpcompile.calibrate(Workload(model, work.batch, counted, optimizer))
    assert {"p_model_fall_weight", "linear_1"} <= found.gradients.keys()
    assert not {"p_model_rise_weight", "linear", "relu"} & found.gradients.keys()


def test_infinities_are_counted_apart() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x).masked_fill(torch.eye(4, 3) > 0, -torch.inf)
            return y

    found = mpcompile.calibrate(replace(workload(Masked()), data=None)).values["masked_fill"]
    assert found.nonfinite == 3
    assert found.largest == torch.inf
    assert found.largest_finite < 10


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "gave no batch"),
        ([(torch.randn(3, 8), torch.zeros(4, dtype=torch.long))], r"float32\[3, 8\]"),
        ([(torch.randn(4, 8).double(), torch.zeros(4, dtype=torch.long))], "float64"),
        ([(torch.randn(4, 8),)], "has 1 tensors"),
        ([(torch.randn(4, 8), [0, 1, 2, 0])], "has 1 tensors"),
        ([(torch.randn(4, 8), [torch.zeros(4, dtype=torch.long)])], "another structure"),
    ],
)
def test_data_of_other_shapes_is_refused(data: list[tuple[object, ...]], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        mpcompile.calibrate(replace(workload(), data=data))


def test_no_batches_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        mpcompile.calibrate(workload(), batches=0)
