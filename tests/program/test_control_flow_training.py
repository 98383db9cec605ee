"""Branches and loops in a training step, against the same program in plain Python."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from programs.flows import FLOWS, Branch, Flow, Gated, Recurrent, Repeat, Tensor
from torch import nn

import mpcompile
from mpcompile.errors import CannotCapture
from mpcompile.step import differentiate
from mpcompile.step.liveness import peak, saved_bytes
from mpcompile.torch_private.ops import scan_is_differentiable

each_flow = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return cast(Tensor, model(x)).square().mean()


def step_of(model: Flow, policy: mpcompile.Policy | None = None) -> mpcompile.TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scale = mpcompile.LossScale.static(1024.0)
    return mpcompile.compile(
        model, loss, optimizer, (model.batch(),), policy=policy, loss_scale=scale
    )


def plain_losses(make: type[Flow], steps: int) -> list[float]:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = model.plain(model.batch()).square().mean()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values


def refused(make: type[Flow]) -> bool:
    """Check that a scan is refused where torch's gradient of it is wrong; return if it is one."""
    if issubclass(make, Recurrent) and not scan_is_differentiable():
        with pytest.raises(CannotCapture, match=r"flows.py:\d+: torch .* wrong gradients of scan"):
            step_of(make())
        return True
    return False


@each_flow
def test_in_fp32_the_losses_are_those_of_plain_python(make: type[Flow]) -> None:
    if refused(make):
        return
    step = step_of(make(), mpcompile.FULL_PRECISION)
    found = [float(step(make().batch())) for _ in range(4)]
    assert found == pytest.approx(plain_losses(make, 4), rel=1e-5)


@each_flow
def test_in_fp16_the_losses_are_close_and_rounded(make: type[Flow]) -> None:
    if refused(make):
        return
    step = step_of(make())
    found = [float(step(make().batch())) for _ in range(4)]
    expected = plain_losses(make, 4)
    assert found != pytest.approx(expected, rel=1e-7)
    assert found == pytest.approx(expected, rel=2e-3)
    assert step.skipped == 0


@each_flow
def test_the_step_can_be_shown_and_measured(make: type[Flow]) -> None:
    if refused(make):
        return
    step = step_of(make())
    assert "\n  graph_0\n" in str(step.step)
    graph = step.step.gradient.graph
    assert peak(graph).bytes > 0
    assert saved_bytes(graph) > 0


class Dropped(Branch):
    def yes(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(self.b(h), 0.5, self.training)


def test_random_numbers_drawn_inside_are_refused() -> None:
    """torch runs the branch again in backward, with another mask."""
    with pytest.raises(CannotCapture, match="the dropout inside a cond would draw other numbers"):
        step_of(Dropped())


def test_a_dropout_that_draws_nothing_is_not_refused() -> None:
    model = Dropped()
    model.eval()
    assert float(step_of(model)(model.batch())) > 0


class DroppedBefore(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5))

    def plain(self, x: Tensor) -> Tensor:
        return super().plain(nn.functional.dropout(x, 0.5))


def test_a_dropout_outside_draws_what_eager_draws() -> None:
    step, model = step_of(DroppedBefore(), mpcompile.FULL_PRECISION), DroppedBefore()
    torch.manual_seed(3)
    found = [float(step(model.batch())) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    for value in found:
        optimizer.zero_grad()
        expected = model.plain(model.batch()).square().mean()
        expected.backward()
        optimizer.step()
        assert value == pytest.approx(float(expected.detach()), rel=1e-5)


class InPlace(Branch):
    def yes(self, h: Tensor) -> Tensor:
        h = self.b(h)
        again = h.relu_()
        return h + again


def test_a_branch_that_works_in_place_trains() -> None:
    step = step_of(InPlace(), mpcompile.FULL_PRECISION)
    found = [float(step(InPlace().batch())) for _ in range(3)]
    assert found == pytest.approx(plain_losses(InPlace, 3), rel=1e-5)


def test_a_step_whose_branches_take_turns() -> None:
    """The predicate is data: one step graph runs either branch.

    A weight that the other branch alone reads has a gradient of 0, as with `torch.cond`, not none.
    """
    step = step_of(Branch(), mpcompile.FULL_PRECISION)
    model = Branch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for sign in (1, -1, 1, -1):
        x = sign * model.batch()
        optimizer.zero_grad()
        expected = loss(model, x)
        expected.backward()
        optimizer.step()
        assert float(step(x)) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_what_loops_keep_is_16_bits_wide() -> None:
    for make in (Repeat, Gated, Recurrent):
        if refused(make):
            continue
        half, full = step_of(make()), step_of(make(), mpcompile.FULL_PRECISION)
        assert saved_bytes(half.step.gradient.graph) < saved_bytes(full.step.gradient.graph)


def test_inductor_gets_operands_that_share_no_memory() -> None:
    """It refuses ops that call graphs on weights of one arena."""
    model = Branch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = (model.batch(),)
    step = mpcompile.compile(model, loss, optimizer, batch, backend="inductor")
    found = [float(step(*batch)) for _ in range(3)]
    assert found == pytest.approx(plain_losses(Branch, 3), rel=2e-3)


def test_inductor_is_refused_the_gradient_of_a_while_loop() -> None:
    model = Repeat()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match=r"flows.py:\d+: inductor cannot compile"):
        mpcompile.compile(model, loss, optimizer, (model.batch(),), backend="inductor")


def test_what_torch_cannot_differentiate_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no rule")

    monkeypatch.setattr(differentiate, "record", fail)
    with pytest.raises(CannotCapture, match=r"flows.py:\d+: torch cannot differentiate this cond"):
        step_of(Branch())
