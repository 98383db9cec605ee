"""The models' steps on a GPU, against pseudo FP16 on the CPU from the same weights and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Literal

import pytest
import torch
from nets.small_models import CUTS, GPU, Backend, compiled, workload

from mpcompile import FULL_PRECISION, LossScale, Policy
from mpcompile.lower.cuda_graph import WARM_UP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STEPS = 5
ROUNDING = 2.0**-11
"""Relative error of one rounding to FP16."""

BACKENDS: tuple[Backend, ...] = ("interpreter", "inductor")


@dataclass(frozen=True)
class Run:
    """Gradients of the first step, in FP64 and end to end, and the losses of all steps."""

    gradient: torch.Tensor
    losses: torch.Tensor


def run(name: str, device: str, backend: Backend, policy: Policy | None = None) -> Run:
    made = workload(name, device)
    step = compiled(made, backend, policy)
    assert made.data is not None
    batches = list(islice(made.data, STEPS))
    gradients = step.gradients(*batches[0])
    parts = [value.double().flatten().cpu() for _, value in sorted(gradients.items())]
    losses = torch.tensor([float(step(*batch)) for batch in batches], dtype=torch.float64)
    assert step.skipped == 0
    return Run(torch.cat(parts), losses)


@cache
def reference(name: str, precision: Literal["fp32", "fp16"]) -> Run:
    """Run on the CPU, which computes FP16 as a Tensor Core does."""
    policy = FULL_PRECISION if precision == "fp32" else Policy()
    return run(name, "cpu", "interpreter", policy)


@contextmanager
def no_host_sync() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tuple(CUTS))
def test_a_gpu_trains_as_pseudo_fp16_on_the_cpu_does(name: str, backend: Backend) -> None:
    """Two FP16 runs may round in other places, but neither far more than the other.

    How far rounding takes a run is what pseudo FP16 differs from FP32 by. For the loss, where that
    difference may vanish by chance, one rounding of it to FP16 is allowed on top.
    """
    full, pseudo = reference(name, "fp32"), reference(name, "fp16")
    found = run(name, GPU, backend)
    error = float((found.gradient - full.gradient).norm() / full.gradient.norm())
    expected = float((pseudo.gradient - full.gradient).norm() / full.gradient.norm())
    assert error <= 3 * expected
    drift = float((pseudo.losses - full.losses).abs().max())
    tolerance = 4 * drift + ROUNDING * float(full.losses.abs().max())
    assert float((found.losses - pseudo.losses).abs().max()) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tuple(CUTS))
def test_a_step_never_waits_for_the_device(name: str, backend: Backend) -> None:
    made = workload(name, GPU)
    step = compiled(made, backend)
    for _ in range(WARM_UP + 1):  # the last one is captured
        step(*made.batch)
    with no_host_sync():
        value = step(*made.batch)
    assert value.device.type == GPU
    assert torch.isfinite(value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tuple(CUTS))
def test_an_overflowing_gradient_skips_the_step_on_the_device(name: str, backend: Backend) -> None:
    """2**40 times any loss gradient leaves the range of FP16."""
    made = workload(name, GPU)
    step = compiled(made, backend, loss_scale=LossScale(2.0**40, ceiling=2.0**41))
    assert made.optimizer is not None
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with_state = [
        (value, value.clone())
        for entry in made.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ]
    for _ in range(2):
        value = step(*made.batch)
    assert torch.isfinite(value)
    assert (step.taken, step.skipped) == (0, 2)
    assert step.loss_scale == 2.0**38
    for key, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(torch.equal(now, then) for now, then in with_state)
