"""Updates too small for an FP16 weight: why the optimizer keeps FP32 master weights.

After section 3.1 of Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput
from mpcompile.numerics.calibration import batch_by_node, same_random_numbers
from mpcompile.program.batch import batch_of
from mpcompile.program.capture import Forward, InputKind
from mpcompile.program.workload import Workload
from mpcompile.step.optimizer_start import optimizer_around
from mpcompile.step.trained import trained_parameters

_EXPONENT, _MANTISSA, _BIAS = 10, 0x3FF, 15  # the layout of the bits of an FP16 number


@dataclass(frozen=True, slots=True)
class Vanishing:
    """The updates of one parameter that FP16 weights would lose, over all steps.

    Attributes:
        parameter: its dotted name.
        count: the parameter's number of elements times the number of steps.
        zeros: updates that were zero.
        vanished: updates other than zero that leave an FP16 weight as it is.
    """

    parameter: str
    count: int
    zeros: int
    vanished: int

    @property
    def share(self) -> float:
        """The share of the updates other than zero that vanish."""
        others = self.count - self.zeros
        return self.vanished / others if others else 0.0


def vanishing_updates(
    workload: Workload, forward: Forward, steps: int = 8
) -> tuple[Vanishing, ...]:
    """Train for some steps in FP32 and count the updates that FP16 weights would lose.

    An update is the new FP32 weight minus the old. It vanishes if the old weight, rounded to FP16,
    plus the update rounds to that same FP16 number; see `vanishes`. Everything runs on copies, as
    in `mpcompile.numerics.calibration.calibrate`; the optimizer continues from its present state.

    Args:
        workload: has a loss and an optimizer. When its data ends, it is iterated again.
        forward: its captured graph, in FP32.
        steps: the number of steps.

    Raises:
        BadInput: there is no loss, no batch, or a batch or the optimizer does not fit the program.
    """
    if workload.optimizer is None:
        raise BadInput("the workload has no loss and no optimizer", workload.origin, "add both")
    if steps < 1:
        raise BadInput(f"steps is {steps}", fix="give at least 1")
    state = {item.node: item.value.clone() for item in forward.inputs}
    weights = {
        item.name: state[item.node] for item in forward.inputs if item.kind is InputKind.PARAMETER
    }
    buffers = {item.name: item.node for item in forward.inputs if item.kind is InputKind.BUFFER}
    optimizer = _copy(workload.optimizer, workload, forward, weights)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    names = {id(weight): name for name, weight in weights.items()}
    counts: dict[str, torch.Tensor] = {}
    with same_random_numbers(item.tensor.device for item in forward.inputs):
        for batch in _batches(workload, steps):
            state |= batch_by_node(batch, forward, workload)
            written = _differentiate(forward, state, trained)
            state |= {buffers[name]: value for name, value in written.items()}
            before = [weight.detach().clone() for weight in trained]
            type(optimizer).step(optimizer)
            for weight, old in zip(trained, before, strict=True):
                name = names[id(weight)]
                found = _count(old, weight.detach())
                counts[name] = counts[name] + found if name in counts else found
    return tuple(Vanishing(name, *found.tolist()) for name, found in counts.items())


def vanishes(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return where an FP16 weight plus an update, rounded to nearest even, is the same weight.

    An update vanishes if it is less than half the distance to the next FP16 number in its
    direction, or exactly half of it and the weight's last digit is even. At a weight of exponent e
    the distance is one ulp, 2^(max(e, -14) - 10); from a power of two towards zero it is half an
    ulp.

    Args:
        weight: FP16, of any shape; it may be infinite.
        update: FP64 of the same shape. An update of zero counts as one that vanishes.

    Returns:
        Booleans of the same shape. Every finite update of an infinite weight vanishes.
    """
    bits = weight.view(torch.int16).int()
    exponent, mantissa = (bits >> _EXPONENT) & 0x1F, bits & _MANTISSA
    ulp = torch.ldexp(torch.ones_like(update), exponent.clamp(min=1) - _BIAS - _EXPONENT)
    edge = (mantissa == 0) & (exponent > 1) & (update.sign() * weight.sign() < 0)
    half = torch.where(edge, ulp / 4, ulp / 2)
    size = update.abs()
    nearer = (size < half) | ((size == half) & (mantissa % 2 == 0))
    return nearer | (weight.isinf() & update.isfinite())


def _copy(
    optimizer: torch.optim.Optimizer,
    workload: Workload,
    forward: Forward,
    weights: dict[str, torch.Tensor],
) -> torch.optim.Optimizer:
    """Return the user's optimizer over copies of its parameters, state and options."""
    known = {
        id(item.tensor): item.name for item in forward.inputs if item.kind is InputKind.PARAMETER
    }
    groups: list[dict[str, Any]] = []
    state: defaultdict[Any, Any] = defaultdict(dict)
    members = trained_parameters(optimizer, known, workload.origin)
    for group, names in zip(optimizer.param_groups, members, strict=True):
        options = {key: value for key, value in group.items() if key != "params"}
        groups.append({**copy.deepcopy(options), "params": [weights[name] for name in names]})
        for parameter in group["params"]:
            if parameter.requires_grad and parameter in optimizer.state:
                mine = weights[known[id(parameter)]]
                state[mine] = copy.deepcopy(optimizer.state[parameter])
    return optimizer_around(optimizer, groups, state)


def _batches(workload: Workload, steps: int) -> Iterator[tuple[Any, ...]]:
    """Yield batches, epoch after epoch; an iterator that ends gives fewer."""
    data = [workload.batch] if workload.data is None else workload.data
    done = 0
    while done < steps:
        before = done
        for batch in data:
            yield batch_of(batch, workload.origin)
            done += 1
            if done == steps:
                return
        if done == before:
            break
    if not done:
        raise BadInput(
            "the workload's data gave no batch",
            workload.origin,
            "give data that can be iterated more than once",
        )


def _differentiate(
    forward: Forward, state: dict[str, torch.Tensor], trained: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give each trained weight its gradient; return the new values of the buffers."""
    for weight in trained:
        weight.requires_grad_()
    with torch.enable_grad():
        module = fx.Interpreter(forward.module)
        results = module.run(*state.values(), enable_io_processing=False)
    for weight in trained:
        weight.grad = None
    if results[-1].requires_grad:
        gradients = torch.autograd.grad(results[-1], trained, allow_unused=True)
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.grad = gradient
    return {name: value.detach() for name, value in zip(forward.written, results, strict=False)}


def _count(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return three counts: all updates, zero updates, and other updates that vanish."""
    update = new.double() - old.double()
    zero = update == 0
    gone = vanishes(old.half(), update) & ~zero
    return torch.stack([torch.tensor(zero.numel(), device=old.device), zero.sum(), gone.sum()])
