"""Pieces read the 16-bit copies of weights that the update of their step writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.eager_training import batches
from torch import Tensor, nn
from torch.nn import functional

import mpcompile
from mpcompile import Policy
from mpcompile.pieces.program_in_pieces import program_in_pieces
from mpcompile.precision import Precision


class Tied(nn.Module):
    """Reads one weight in a matmul and in a sum, and another only for some batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.one(x))
        if x.sum().item() > 0:
            out = self.two(out)
        result: Tensor = functional.linear(out, self.one.weight)
        return result


def loss(model: Any, x: Tensor) -> Tensor:
    value: Tensor = model(x).square().mean() + 1e-3 * model.one.weight.square().sum()
    return value


def made(precision: Precision = Precision.FP16, **options: Any) -> tuple[Tied, Any, Tensor]:
    model = Tied()
    (x,) = batches(1, (6, 8))[0]
    x = x.abs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    policy = Policy(precision=precision)
    return model, mpcompile.compile(model, loss, optimizer, (x,), policy=policy, **options), x


def copies(step: Any) -> dict[str, Tensor]:
    return {
        name.removesuffix(".working"): value
        for name, value in step._state.items()
        if name.endswith(".working") and not name.startswith("arena")
    }


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_the_update_writes_the_copies(precision: Precision, backend: Any) -> None:
    model, step, x = made(precision, backend=backend)
    losses = [float(step(x)) for _ in range(4)]
    assert losses[-1] < losses[0]
    found = copies(step)
    assert {"one.weight", "two.weight"} <= found.keys()
    assert "norm.weight" not in found
    parameters = dict(model.named_parameters())
    for name, copy in found.items():
        assert torch.equal(copy, parameters[name].detach().to(copy.dtype))


def test_a_weight_that_is_also_read_in_fp32_has_the_sum_of_both_gradients() -> None:
    model, step, x = made()
    found = step.gradients(x)
    again = step.gradients(x)
    loss(model, x).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        assert torch.allclose(found[name], value.grad, rtol=2e-2, atol=2e-3), name
        assert torch.allclose(found[name], again[name], rtol=2e-3, atol=1e-4), name


def test_copies_follow_a_write_of_the_user() -> None:
    model, step, x = made()
    step(x)
    with torch.no_grad():
        model.one.weight.mul_(2)
    wanted = float(loss(model, x))
    assert float(step(x)) == pytest.approx(wanted, rel=2e-2)


def test_a_weight_that_another_way_reads_has_a_copy_then() -> None:
    _, step, x = made()
    step(-x)
    assert "two.weight" not in copies(step)
    step(x)
    assert {"one.weight", "two.weight"} <= copies(step).keys()
    known = len(step._all._programs)
    for batch in (-x, x, -x, x):
        step(batch)
    assert len(step._all._programs) <= known + 2  # equal counts of updates are another grouping
    assert step.taken == 6


def test_without_copies_the_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, step, x = made()
    wanted = step.gradients(x)
    monkeypatch.setattr(
        "mpcompile.pipeline.program_in_pieces",
        lambda *args, **_: program_in_pieces(*args, copies=False),
    )
    _, step, x = made()
    found = step.gradients(x)
    assert not copies(step)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-7), name


def test_an_accumulated_update_has_copies() -> None:
    _, step, x = made(accumulate=2)
    for _ in range(4):
        step(x)
    assert step.taken == 2
    assert copies(step)
