"""What nothing reads goes; what the caller gives stays."""

from __future__ import annotations

import torch
from programs.graphs import inputs_of, linear, run, step_of, tied
from torch import nn

from mpcompile.passes.step.drop_dead import drop_dead
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.program.workload import Workload
from mpcompile.step.graph import placeholders
from mpcompile.step.slots import Role


def test_masters_that_only_their_copies_stand_for_leave_the_gradient_graph() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    pack_gradients(step)
    assert drop_dead(step) > 0
    masters = [n for n in placeholders(step.gradient.graph) if step.slots[n].role is Role.MASTER]
    assert masters == ["norm.weight", "norm.bias"]
    assert "words.weight" not in step.slots
    step.check()
    text = str(step)
    assert drop_dead(step) == 0
    assert str(step) == text


def test_a_batch_tensor_that_the_loss_ignores_stays() -> None:
    model = nn.Linear(4, 3)

    def half_blind(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        del y
        return torch.mean(model(x) ** 2)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = step_of(Workload(model, (torch.randn(2, 4), torch.ones(2)), half_blind, optimizer))
    drop_dead(step)
    assert [s.name for s in step.slots.values() if s.role is Role.BATCH] == ["batch.0", "batch.1"]
    assert "batch.1" in placeholders(step.gradient.graph)


def test_results_stay_the_same() -> None:
    step = step_of(linear())
    hoist_weight_casts(step)
    pack_gradients(step)
    before = run(step.update, *inputs_of(step, step.update.graph))
    drop_dead(step)
    after = run(step.update, *inputs_of(step, step.update.graph))
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left, right)
