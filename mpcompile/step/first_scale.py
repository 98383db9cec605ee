"""The loss scale of the first step, for the gradients that the first batch has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from mpcompile.precision import Precision
from mpcompile.step.processes import largest
from mpcompile.step.transformed import Transformed


def with_first_scale(made: Transformed, gradients: Mapping[str, torch.Tensor]) -> Transformed:
    """Return a program that begins with the loss scale for its first batch.

    Args:
        made: the program; its rule of the loss scale says whether the first batch decides.
        gradients: by node of the forward graph the largest magnitude, 0-d, of the gradient by it in
            FP32. Those by tensors that the plan stores in FP16 count, as for ``mpcompile
            gradients``; backward stores the others in FP32.
    """
    rule, storage = made.choices.scale, made.plan.storage
    found = [
        value.float()
        for name, value in gradients.items()
        if Precision.FP16 in storage.get(name, ())
    ]
    if not rule.measured or not found:
        return made
    finite = torch.stack(found)
    finite = finite[finite.isfinite()]
    if not finite.numel():
        return made
    return _with(made, rule.for_gradients(float(finite.max())).initial)


def with_common_scale(made: Transformed) -> Transformed:
    """Return a program that begins with the smallest of the first scales of all processes."""
    rule, parallel = made.choices.scale, made.choices.loop.parallel
    if not rule.measured or parallel is None:
        return made
    power = -largest(-round(math.log2(rule.initial)), parallel)
    return _with(made, 2.0**power)


def _with(made: Transformed, initial: float) -> Transformed:
    rule = replace(made.choices.scale, initial=initial)
    return replace(made, choices=replace(made.choices, loss_scale=rule))
