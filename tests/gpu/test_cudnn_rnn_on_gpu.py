"""Recurrent layers through cuDNN itself: results and gradients are those of ``torch.nn``."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from nets.recurrent import KINDS, Recurrent, loss

import mpcompile
from mpcompile import FULL_PRECISION, Policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FEATURES, CELLS, LAYERS, STEPS, BATCH = 16, 24, 2, 7, 5

SWITCHES = list(product((False, True), repeat=3))
CASES = [
    *product(["interpreter"], KINDS, SWITCHES),
    *product(["inductor"], KINDS, SWITCHES[-1:]),  # compiles for seconds
]


@pytest.mark.parametrize(("backend", "kind", "switches"), CASES)
@pytest.mark.parametrize("policy", [FULL_PRECISION, Policy()], ids=["fp32", "fp16"])
def test_gradients_are_those_of_plain_pytorch(
    backend: Any, kind: str, switches: tuple[bool, bool, bool], policy: Policy
) -> None:
    torch.manual_seed(0)
    options = dict(zip(("bias", "batch_first", "bidirectional"), switches, strict=True))
    model = Recurrent(kind, FEATURES, CELLS, LAYERS, **options).cuda()
    x = torch.randn(STEPS, BATCH, FEATURES, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        value = loss(model, x)
        names, weights = zip(*model.named_parameters(), strict=True)
        expected = dict(zip(names, torch.autograd.grad(value, weights), strict=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = mpcompile.compile(model, loss, optimizer, (x,), policy=policy, backend=backend)
        found = step.gradients(x)
    # FP16: some tens of roundings, one a step in time, of which each is 2**-11 at most.
    tolerance = 1e-5 if policy is FULL_PRECISION else 32 * 2.0**-11
    for name, gradient in found.items():
        error = float((gradient - expected[name]).norm() / expected[name].norm())
        assert error < tolerance, name


def test_dropout_between_layers_draws_anew_each_step() -> None:
    torch.manual_seed(0)
    model = Recurrent("lstm", FEATURES, CELLS, LAYERS, dropout=0.5).cuda()
    x = torch.randn(STEPS, BATCH, FEATURES, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = mpcompile.compile(model, loss, optimizer, (x,))
    losses = {float(step(x)) for _ in range(4)}
    assert len(losses) == 4
