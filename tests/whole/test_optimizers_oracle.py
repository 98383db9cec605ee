"""Fifty steps in mixed precision with each dense optimizer: the error oracle, carried on.

The yardstick is the same optimizer in eager PyTorch on FP32 weights, fed with gradients of plain
FP32, whose rounding is 2^13 times finer than FP16's. The peer is that optimizer fed with gradients
of eager autocast in FP16. Weights and state of a compiled step may end `FACTOR` times as far from
the plain run's as the peer's do: what the oracle allows a gradient, what is made of gradients may
have too. Why that is right depends on what an optimizer takes from a gradient:

- Its size (all but the two below). To first order the distance is a linear function of the
  gradients' errors, the same one in both runs: thrice the error, thrice the distance. Adam's first
  step and its like are a matter of the sign where a gradient is no larger than its error: thrice
  the error, thrice as many such weights, and the norm grows only as the root of their number.
- Its sign (Rprop). A flipped sign changes an update by twice the step size, and the step sizes
  after it, so how far such a weight ends is luck. How many flip is not, that grows as the error.
  So weights and step sizes are counted that are not bit for bit the plain run's, and the loss is
  looked at.
- What BF16 makes of it (Muon). BF16 rounds more coarsely than FP16. Any error makes it round
  otherwise, so both distances are of the size of its rounding, whatever the gradients' errors are.

A single rounding error is luck; the norm of a thousand, or their number, is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles.error import FACTOR, SCALE
from programs.dense_optimizers import WITH_TENSOR
from torch import nn

import mpcompile
from mpcompile import LossScale, TrainStep
from mpcompile.passes import order
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.step.graph import StepGraph

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-2, "momentum": 0.9},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3},
    "NAdam": {"lr": 1e-3},
    "RAdam": {"lr": 1e-3},
    "Adamax": {"lr": 1e-3},
    "Adagrad": {"lr": 1e-2},
    "Adadelta": {"lr": 1.0},
    "RMSprop": {"lr": 1e-3},
    "ASGD": {"lr": 1e-2},
    "Rprop": {"lr": 1e-3},
    "Adafactor": {"lr": 1e-3},
    "Muon": {"lr": 1e-4},
}
STEPS = 50
WEIGHTS = "weights"
COUNTED = {"Rprop": {WEIGHTS, "step_size"}}
"""What only signs decide about."""

Tensors = dict[str, torch.Tensor]
"""All weights in a row, and all optimizer state of a kind in a row."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(12, 48), nn.LayerNorm(48), nn.Linear(48, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leave(nn.functional.gelu(self.norm(self.enter(x))))
        return result


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points and which of six noisy coordinates is the largest: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 12, generator=generator)
    return x, (x[:, :6] + torch.randn(16, 6, generator=generator) / 2).argmax(1)


def made(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    trained = [p for p in model.parameters() if name != "Muon" or p.dim() == 2]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(trained, **OPTIMIZERS[name])
    return model, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    rows = {WEIGHTS: [p.detach() for p in model.parameters()]}
    for _, state in sorted(optimizer.state_dict()["state"].items()):
        for key, value in state.items():
            rows.setdefault(key, []).append(torch.as_tensor(value))
    return {key: torch.cat([v.double().flatten() for v in row]) for key, row in rows.items()}


def held_out(model: nn.Module) -> float:
    """Return the mean loss of batches that no run trains on."""
    with torch.no_grad():
        return float(sum(cross_entropy(model, *batch(1000 + k)) for k in range(8))) / 8


def eager(name: str, *, half: bool) -> tuple[Tensors, float]:
    """Return what eager PyTorch trains, and its loss on batches that were held out."""
    model, optimizer = made(name)
    scale = SCALE if half else 1.0
    for seed in range(STEPS):
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            value = cross_entropy(model, *batch(seed))
        optimizer.zero_grad()
        torch.autograd.backward(value.float() * scale)
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= scale
        optimizer.step()
    return tensors(model, optimizer), held_out(model)


@dataclass(frozen=True)
class Distance:
    """From the plain run.

    Attributes:
        norm: of the difference.
        differing: how many numbers are not bit for bit the same.
    """

    norm: float
    differing: int


def distances(found: Mapping[str, torch.Tensor], plain: Tensors) -> dict[str, Distance]:
    assert found.keys() == plain.keys()
    return {
        key: Distance(float((found[key] - right).norm()), int((found[key] != right).sum()))
        for key, right in plain.items()
    }


def too_far(name: str, ours: dict[str, Distance], peer: dict[str, Distance]) -> dict[str, Any]:
    """Return what is out of bounds, with both distances."""
    counted = COUNTED.get(name, set())
    return {
        key: (mine, peer[key])
        for key, mine in ours.items()
        if mine.differing > FACTOR * peer[key].differing
        or (key not in counted and mine.norm > FACTOR * peer[key].norm)
    }


LEFT_OUT, HALF_MASTERS, SCALED = "an update left out", "masters in FP16", "gradients not unscaled"


class NeverUnscaled(ScaleLoss):
    """Scales the loss, and lets the optimizer see what comes of it."""

    def __call__(self, step: StepGraph) -> int:
        changes = super().__call__(step)
        for node in [node for node in step.update.graph.nodes if node.meta.get("packed")]:
            (scaled, _) = node.all_input_nodes
            scaled.meta["packed"] = node.meta.pop("packed")
            node.replace_all_uses_with(scaled)
        return changes


def compiled(name: str) -> tuple[TrainStep, nn.Module, torch.optim.Optimizer]:
    model, optimizer = made(name)
    scale = LossScale.static(SCALE)
    step = mpcompile.compile(model, cross_entropy, optimizer, batch(0), loss_scale=scale)
    return step, model, optimizer


def train(step: TrainStep, model: nn.Module, fault: str = "") -> None:
    for seed in range(STEPS):
        if fault != LEFT_OUT or seed != STEPS // 2:
            step(*batch(seed))
        if fault == HALF_MASTERS:
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p.half())


@dataclass(frozen=True)
class Runs:
    """What fifty steps have come to.

    Attributes:
        name: of the optimizer.
        peer: autocast's distances.
        ours: our distances by the planted fault; without one: ``""``.
        gained: by how much the loss has fallen without a fault, on batches that were held out.
        plain_gained: the same of the plain run.
    """

    name: str
    peer: dict[str, Distance]
    ours: dict[str, dict[str, Distance]]
    gained: float
    plain_gained: float


@pytest.fixture(scope="module", params=OPTIMIZERS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    name = request.param
    plain, plain_loss = eager(name, half=False)
    found = {}
    step, model, optimizer = compiled(name)
    start, loss = step.save(tmp_path_factory.mktemp(name)), held_out(model)
    for fault in (LEFT_OUT, HALF_MASTERS, ""):
        step.load(start)
        train(step, model, fault)
        found[fault] = tensors(model, optimizer)
    gained = loss - held_out(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "ScaleLoss", NeverUnscaled)
        step, model, optimizer = compiled(name)
    train(step, model)
    found[SCALED] = tensors(model, optimizer)
    ours = {fault: distances(run, plain) for fault, run in found.items()}
    peer, _ = eager(name, half=True)
    return Runs(name, distances(peer, plain), ours, gained, loss - plain_loss)


def test_every_dense_optimizer_is_in_the_list() -> None:
    assert list(OPTIMIZERS) == WITH_TENSOR


def test_masters_and_state_end_within_three_times_the_distance_of_autocast(runs: Runs) -> None:
    assert not too_far(runs.name, runs.ours[""], runs.peer)


def test_what_is_learned_differs_by_less_than_one_update_of_fifty(runs: Runs) -> None:
    """Of Rprop's weights that differ, the distance is not bounded; what they do to the loss is."""
    assert runs.plain_gained > 0
    assert abs(runs.gained - runs.plain_gained) < runs.plain_gained / STEPS


@pytest.mark.parametrize("fault", [LEFT_OUT, HALF_MASTERS])
def test_masters_are_too_far_with_a_planted_fault(runs: Runs, fault: str) -> None:
    assert WEIGHTS in too_far(runs.name, runs.ours[fault], runs.peer)


def test_state_is_too_far_if_gradients_are_not_unscaled(runs: Runs) -> None:
    """Weights often are not: what is divided by the gradients' size goes the same way."""
    assert too_far(runs.name, runs.ours[SCALED], runs.peer)
