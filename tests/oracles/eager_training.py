"""Eager PyTorch as the oracle of a compiled step: the same program, trained side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, Policy, TrainStep

Batch = tuple[torch.Tensor, ...]
Optimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def batches(count: int, *shapes: tuple[int, ...], seed: int = 0) -> list[Batch]:
    """Return batches of normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(count)
    ]


class SideBySide:
    """A program and its copy: one is compiled, the other runs in eager PyTorch.

    Args:
        model: the program's model; it is copied before `prepare`.
        loss: ``loss(model, *batch)``.
        example: the example batch.
        optimizer: makes the optimizers.
        prepare: changes a model before it is compiled, for example registers hooks.
        policy: of the step.
        options: others of `mpcompile.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        example: Batch,
        optimizer: Optimizer = adamw,
        prepare: Callable[[Any], object] | None = None,
        policy: Policy = FULL_PRECISION,
        **options: Any,
    ) -> None:
        self.eager = copy.deepcopy(model)
        self.model, self.loss = model, loss
        if prepare is not None:
            prepare(self.model)
            prepare(self.eager)
        self.start = {name: value.clone() for name, value in self.eager.state_dict().items()}
        self.optimizer, self.eager_optimizer = (
            optimizer(each.parameters()) for each in (self.model, self.eager)
        )
        self.every = options.get("accumulate", 1)
        self._calls = 0
        self.step: TrainStep = mpcompile.compile(
            self.model, loss, self.optimizer, example, policy=policy, **options
        )

    def train(self, data: Sequence[Batch]) -> list[tuple[float, float]]:
        """Train both on the same batches and random numbers; return the losses in pairs."""
        losses = []
        for batch in data:
            state = torch.get_rng_state()
            mine = self.step(*batch)
            torch.set_rng_state(state)
            theirs = self.loss(self.eager, *batch)
            theirs.backward()
            self._calls += 1
            if self._calls % self.every == 0:
                for parameter in self.eager.parameters():
                    if parameter.grad is not None and self.every > 1:
                        parameter.grad /= self.every
                self.eager_optimizer.step()
                self.eager_optimizer.zero_grad()
            losses.append((float(mine), float(theirs)))
        return losses

    def differing(self) -> list[str]:
        """Return the names of the weights and buffers whose bits differ."""
        theirs = self.eager.state_dict()
        return [
            name
            for name, value in self.model.state_dict().items()
            if not torch.equal(value, theirs[name])
        ]

    def distance(self) -> float:
        """Return the largest distance of a weight from eager PyTorch over its own movement."""
        theirs = self.eager.state_dict()
        return max(
            float((value - theirs[name]).norm() / (theirs[name] - self.start[name]).norm())
            for name, value in self.model.state_dict().items()
            if value.is_floating_point() and not torch.equal(theirs[name], self.start[name])
        )
