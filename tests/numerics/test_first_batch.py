"""The first batch in 16 bits beside FP32: sound nets pass, planted faults are named and mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import pytest
import torch
from nets import NETS
from planted import marked
from planted.marked import FORCED, line_of
from torch import nn

from bench.speed.variant import TINY, load
from mpcompile import LossScale, Policy, Precision, Workload
from mpcompile.lower.lower import Lowering
from mpcompile.numerics.blame import Blame, blame
from mpcompile.numerics.first_batch import GRADIENT, VALUE, Far, compare
from mpcompile.numerics.lockstep import FULL, moment, results_of
from mpcompile.numerics.node_errors import relative_error
from mpcompile.numerics.unbound import unbound_moment
from mpcompile.pipeline import prove, to_step, transform
from mpcompile.program.random_state import random_state
from mpcompile.step.transformed import Choices

CPU = torch.device("cpu")
SOUND: dict[str, Callable[[], Workload]] = {
    **{f"tiny {name}": partial(load, name, "tiny", "cpu") for name in TINY},
    **NETS,
}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("name", SOUND)
def test_sound_nets_are_near_fp32(name: str, precision: Precision) -> None:
    made, proof = prove(SOUND[name](), Choices(policy=Policy(precision=precision)))
    assert proof is not None
    found = compare(made, proof)
    assert found is not None
    assert found.far == ()
    assert found.loss < VALUE[precision] / 64
    assert 0 < found.gradient < GRADIENT[precision]


@pytest.mark.parametrize("name", TINY)
def test_what_an_unbound_step_reads_is_what_a_bound_step_reads(name: str) -> None:
    made = transform(load(name, "tiny", "cpu"), Choices(verify=False))
    random = random_state(CPU)
    before = unbound_moment(made, random, made.choices.scale.initial)
    (results,) = results_of(before)
    bound = moment(to_step(made, Lowering(backend="interpreter")), *made.workload.batch)
    assert before.values.keys() == bound.values.keys()
    assert before.masters.keys() == bound.masters.keys()
    for mine, its in ((before.values, bound.values), (before.masters, bound.masters)):
        for slot, value in its.items():
            assert mine[slot].stride() == value.stride(), slot
            assert torch.equal(mine[slot], value), slot
    (again,) = results_of(replace(bound, random=random))
    for slot, value in again.items():  # at this scale some overflow
        torch.testing.assert_close(results[slot], value, rtol=0, atol=0, equal_nan=True)


def test_the_results_are_the_steps_and_the_wide_ones_are_the_programs() -> None:
    made, proof = prove(marked.program(nn.Identity))
    assert proof is not None
    ours, full = results_of(unbound_moment(made, proof.random, 1024.0), FULL)
    assert relative_error(full["loss"], proof.full.loss) < 1e-6
    for name, gradient in proof.full.gradients.items():
        assert gradient is not None
        assert relative_error(full[f"grad.{name}"] / 1024.0, gradient) < 1e-6
    step = to_step(made, Lowering(backend="interpreter"))
    assert torch.equal(step(*made.workload.batch), ours["loss"])


class Normed(nn.Module):
    """The bias before the norm has a gradient that is noise in any precision."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.leave(torch.relu(self.norm(self.enter(x))))
        return found


def squares(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(x).square().mean()
    return found


def workload(model: nn.Module, batch: torch.Tensor) -> Workload:
    return Workload(model, (batch,), squares, torch.optim.SGD(model.parameters(), 0.1))


def test_a_gradient_that_is_noise_is_no_error() -> None:
    torch.manual_seed(0)
    made, proof = prove(workload(Normed(), torch.randn(64, 16)))
    assert proof is not None
    bias = proof.full.gradients["enter.bias"]
    assert bias is not None
    (ours,) = results_of(unbound_moment(made, proof.random, 1024.0))
    assert relative_error(ours["grad.enter.bias"].float() / 1024.0, bias) > 10
    found = compare(made, proof)
    assert found is not None
    assert found.far == ()


class Cancelling(nn.Module):
    """Its result is the rounding of a sum: FP32 is far from FP64 too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.enter(x)
        return (y + 100.0) - y - 100.0


def mean(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(x).mean()
    return found


def test_what_fp32_does_not_know_either_is_no_error() -> None:
    torch.manual_seed(0)
    policy = Policy(half=("add", "sub"))
    subject = replace(workload(Cancelling(), torch.randn(64, 16)), loss=mean)
    made, proof = prove(subject, Choices(policy=policy))
    assert proof is not None
    found = compare(made, proof)
    assert found is not None
    assert found.far == ()


def test_a_result_that_fp32_has_as_zero_is_not_called_infinite() -> None:
    far = Far("the gradient of w", "grad.w", inf, 0.5)
    assert str(far) == "the gradient of w is not zero, and in FP32 it is"
    assert "not finite" in str(replace(far, finite=False))
    assert "differs from FP32 by 0.7 of its size, over 0.5" in str(replace(far, error=0.7))


def blamed(made: Workload, **choices: Any) -> Blame:
    mixed, proof = prove(made, Choices(**choices))
    assert proof is not None
    found = compare(mixed, proof)
    assert found is not None
    assert found.far
    return blame(mixed, proof, found)


@pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")
@pytest.mark.parametrize(
    ("middle", "fault", "policy", "said"),
    [
        (marked.Logits, "logits", Policy(), "the loss has numbers that are not finite, and FP32"),
        (marked.Sum, "sum", Policy(), "is the first node that is far off: its result reaches"),
        (marked.Epsilon, "division", FORCED, "rounded a nonzero number to 0"),
        (marked.Underflow, "underflow", Policy(), "the gradient of middle.faint.weight differs"),
    ],
)
def test_a_planted_fault_is_named_with_its_line_and_an_override_that_mends_it(
    middle: Callable[[], nn.Module], fault: str, policy: Policy, said: str
) -> None:
    found = blamed(marked.program(middle), policy=policy)
    assert said in found.what
    assert str(found.where).endswith(f"marked.py:{line_of(fault)}")
    assert found.remedy is not None
    choices = found.remedy.applied(Choices(policy=policy))
    mended, proof = prove(marked.program(middle), replace(choices, verify=True))
    assert proof is not None
    again = compare(mended, proof)
    assert again is not None
    assert again.far == ()


def test_a_loss_scale_that_is_too_large_gets_a_smaller_one() -> None:
    found = blamed(marked.program(nn.Identity), loss_scale=LossScale.static(1e9))
    assert found.remedy is not None
    assert found.remedy.scale is not None
    assert found.remedy.scale < 1e7
    assert found.remedy.flags == f"--loss-scale {found.remedy.scale:g}"
    assert found.remedy.arguments == f"loss_scale=LossScale.static({found.remedy.scale:g})"


def test_with_a_given_plan_no_override_is_named() -> None:
    plan = transform(marked.program(marked.Logits), Choices(verify=False)).plan
    found = blamed(marked.program(marked.Logits), plan=plan)
    assert (found.remedy, found.tried) == (None, False)


def test_a_dynamic_scale_is_lowered_until_gradients_are_finite() -> None:
    choices = Choices(loss_scale=LossScale(initial=2.0**24))
    made, proof = prove(marked.program(nn.Identity), choices)
    assert proof is not None
    found = compare(made, proof)
    assert found is not None
    assert found.far == ()
    assert float(found.moment.values["loss_scale"]) < 2.0**24


def test_in_fp32_and_for_an_infinite_loss_there_is_nothing_to_compare() -> None:
    made, proof = prove(
        marked.program(nn.Identity), Choices(policy=Policy(precision=Precision.FP32))
    )
    assert proof is not None
    assert compare(made, proof) is None
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    made, proof = prove(workload(model, torch.full((8, 16), torch.inf)))
    assert proof is not None
    assert compare(made, proof) is None


def test_nothing_of_the_users_changes() -> None:
    subject = marked.program(marked.Logits)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    blamed(subject)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() == places[name]
    assert all(weight.grad is None for weight in subject.model.parameters())
