"""Several processes train as one does on all their rows."""

from __future__ import annotations

from typing import Any

import torch
from joint_net import batch, compiled, everywhere, from_first, loss, made, mine, processes, state
from torch import distributed

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, Policy

SGD: tuple[Any, dict[str, Any]] = (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3})
OTHERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_grad_norm": 0.1},
    {"max_grad_value": 1e-3},
    {"accumulate": 2},
]
STEPS = 6


def trained(parallel: Any, optimizer: Any, rates: Any, **options: Any) -> dict[str, torch.Tensor]:
    model, held = made(optimizer, **rates)
    if parallel is None:
        step = mpcompile.compile(model, loss, held, batch(0), **options)
    else:
        step = compiled(model, held, parallel, **options)
    for seed in range(STEPS):
        whole = batch(seed)
        step(*(whole if parallel is None else mine(whole)))
    assert step.taken == STEPS // options.get("accumulate", 1)
    found = state(step, model, held)
    if parallel is not None:
        everywhere(found)
    return found


def compare(policy: Policy, kind: Any, options: dict[str, Any], *ways: dict[str, Any]) -> None:
    optimizer, rates = kind
    given = {"policy": policy, "loss_scale": LossScale.static(1024.0), **options}
    alone = from_first(lambda: trained(None, optimizer, rates, **given))
    for parallel in ways:
        together = trained(parallel, optimizer, rates, **given)
        assert alone.keys() == together.keys()
        # Gradients of a part of the rows are rounded to 16 bits, each for itself.
        narrow = policy is not FULL_PRECISION or "reduce" in parallel
        rtol, atol = (2e-3, 3e-4) if narrow else (2e-6, 2e-6)
        for name, value in alone.items():
            torch.testing.assert_close(
                together[name], value, rtol=rtol, atol=atol,
                msg=f"{name} {options} {parallel}",
            )  # fmt: skip


def gradients(parallel: dict[str, Any], **options: Any) -> None:
    """Gradients that are asked for are the mean over all rows, and the same everywhere."""
    model, held = made(*SGD[:1])
    alone = mpcompile.compile(model, loss, held, batch(0), policy=FULL_PRECISION)
    expected = alone.gradients(*batch(0))
    model, held = made(*SGD[:1])
    step = compiled(model, held, parallel, policy=FULL_PRECISION, **options)
    found = step.gradients(*mine(batch(0)))
    everywhere(found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-7)


with processes():
    plain: dict[str, Any] = {}
    sliced = {"shard": True}
    if distributed.get_world_size() > 2:
        compare(FULL_PRECISION, SGD, {"max_grad_norm": 0.1}, plain, sliced)
        compare(Policy(), OTHERS[1], {}, plain, sliced)
    else:
        for options in OPTIONS:
            compare(FULL_PRECISION, SGD, options, plain, sliced)
        for kind in OTHERS:
            compare(FULL_PRECISION, kind, {}, plain, sliced)
        compare(FULL_PRECISION, SGD, {"dynamic": True}, plain, sliced)
        gradients(plain)
        gradients(sliced, accumulate=2)
        compare(Policy(), SGD, {}, plain, sliced, {"bucket_bytes": 500},
                {"reduce": "float16"}, {**sliced, "reduce": "float16"})  # fmt: skip
        compare(Policy(), SGD, {"accumulate": 2, "max_grad_norm": 0.1}, plain, sliced)
        compare(Policy(), SGD, {"backend": "inductor"}, {"bucket_bytes": 500})
