"""The error oracle: a program in FP64, eager autocast and mpcompile, from equal weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import mpcompile
from oracles.half_convolutions import QuickHalfConvolutions

Loss = Callable[..., torch.Tensor]
Batch = tuple[torch.Tensor, ...]
SCALE = 2.0**10

FACTOR = 3.0
"""How many times the error of eager autocast is allowed."""


@dataclass(frozen=True)
class Errors:
    """Root-mean-square error of losses and relative L2 error of all gradients, against FP64."""

    loss: float
    gradient: float


def errors(
    model: torch.nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    policy: mpcompile.Policy | None = None,
) -> tuple[Errors, Errors]:
    """Return the errors of mpcompile and of eager autocast. Both scale the loss by `SCALE`.

    Dropout is off: the three runs would draw different masks, and then no error means anything.
    """
    model = without_dropout(model)
    truth = [reference(model, loss, batch) for batch in batches]
    peer = [autocast(model, loss, batch) for batch in batches]
    mine = copy.deepcopy(model)
    step = mpcompile.compile(
        mine,
        loss,
        torch.optim.SGD(mine.parameters(), lr=0.0),
        batches[0],
        policy=policy,
        loss_scale=mpcompile.LossScale.static(SCALE),
        backend="interpreter",
    )
    ours = []
    for batch in batches:
        buffers = [buffer.clone() for buffer in mine.buffers()]
        gradients = step.gradients(*batch)
        value = step(*batch)
        for buffer, before in zip(mine.buffers(), buffers, strict=True):
            buffer.copy_(before)
        trained = [name for name, p in mine.named_parameters() if p.requires_grad]
        ours.append((float(value), _flat([gradients[name] for name in trained])))
    return compare(ours, truth), compare(peer, truth)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.RNNBase | torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def reference(model: torch.nn.Module, loss: Loss, batch: Batch) -> tuple[float, torch.Tensor]:
    double = copy.deepcopy(model).double()
    value = loss(double, *[b.double() if b.is_floating_point() else b for b in batch])
    torch.autograd.backward(value)
    return float(value.detach()), gradients_of(double, 1.0)


def autocast(model: torch.nn.Module, loss: Loss, batch: Batch) -> tuple[float, torch.Tensor]:
    peer = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(peer, *batch)
    with QuickHalfConvolutions():
        torch.autograd.backward(value.float() * SCALE)
    return float(value.detach()), gradients_of(peer, SCALE)


def gradients_of(model: torch.nn.Module, scale: float) -> torch.Tensor:
    found = [p.grad for p in model.parameters()]
    return _flat([torch.zeros(0) if grad is None else grad / scale for grad in found])


def _flat(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in values])


def compare(
    found: Sequence[tuple[float, torch.Tensor]], truth: Sequence[tuple[float, torch.Tensor]]
) -> Errors:
    losses = torch.tensor([a - b for (a, _), (b, _) in zip(found, truth, strict=True)]).double()
    wrong = _flat([a - b for (_, a), (_, b) in zip(found, truth, strict=True)])
    right = _flat([b for _, b in truth])
    return Errors(float(losses.square().mean().sqrt()), float(wrong.norm() / right.norm()))
