"""Programs as other people write them train as in eager PyTorch, and close to it in 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracles.error import FACTOR, SCALE, compare, gradients_of
from programs.others import PROGRAMS
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, Policy, TrainStep
from mpcompile.torch_private.tracing import map_tensors

STEPS = 4
AS_EAGER = 2e-6
"""Relative: sums of other order, where eager PyTorch runs a composite op as a whole."""


def called(function: Any, batch: Any, *before: Any) -> Any:
    if isinstance(batch, Mapping):
        return function(*before, **batch)
    return function(*before, *batch)


def loss_of(result: Any) -> torch.Tensor:
    value: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return value


def compiled(model: nn.Module, loss: Any, batch: Any, **options: Any) -> TrainStep:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return mpcompile.compile(model, loss, optimizer, batch, **options)


@pytest.mark.filterwarnings("ignore::mpcompile.UnusedParameters")
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_program_trains_as_in_eager_pytorch(name: str) -> None:
    torch.manual_seed(0)
    model, loss, batch = PROGRAMS[name]()
    eager = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(eager.parameters(), lr=1e-3)
    step = compiled(model, loss, batch, policy=FULL_PRECISION)
    for _ in range(STEPS):
        state = torch.get_rng_state()
        mine = loss_of(called(step, batch))
        torch.set_rng_state(state)
        theirs = loss_of(called(loss, batch, eager))
        torch.autograd.backward(theirs)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(mine, theirs.detach(), rtol=AS_EAGER, atol=1e-7)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.filterwarnings("ignore::mpcompile.UnusedParameters")
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_program_is_as_near_to_fp64_as_autocast(name: str) -> None:
    torch.manual_seed(0)
    model, loss, batch = PROGRAMS[name]()

    def run(model: nn.Module, batch: Any, scale: float) -> tuple[float, torch.Tensor]:
        value = loss_of(called(loss, batch, model))
        torch.autograd.backward(value * scale)
        return float(value.detach()), gradients_of(model, scale)

    def wide(value: torch.Tensor) -> torch.Tensor:
        return value.double() if value.is_floating_point() else value

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # what the program makes itself
    try:
        truth = run(copy.deepcopy(model).double(), map_tensors(wide, batch), 1.0)
    finally:
        torch.set_default_dtype(default)
    with torch.autocast("cpu", dtype=torch.float16):
        peer = run(copy.deepcopy(model), batch, SCALE)
    step = compiled(model, loss, batch, policy=Policy(), loss_scale=LossScale.static(SCALE))
    gradients = called(step.gradients, batch)
    found = [gradients[key] for key, _ in model.named_parameters() if key in gradients]
    mine = loss_of(called(step, batch))
    ours = float(mine), torch.cat([value.double().flatten() for value in found])
    here, there = compare([ours], [truth]), compare([peer], [truth])
    # The loss of one batch can be right by chance.
    assert here.loss <= FACTOR * there.loss + 2.0**-11 * abs(truth[0])
    assert here.gradient <= FACTOR * there.gradient + 1e-6
