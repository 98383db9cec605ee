"""Errors of every tensor, against the oracle's own figures and for planted faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets.small_models import compiled, workload
from planted import marked
from planted.marked import FORCED, line_of
from programs.graphs import WORKLOADS
from torch import nn

from mpcompile import LossScale, Policy, Workload
from mpcompile.numerics.eager_autocast import keys_of
from mpcompile.numerics.node_errors import (
    TOLERANCE,
    NodeError,
    check,
    failures,
    first_failure,
    relative_error,
    worst,
)
from mpcompile.program.capture import capture
from mpcompile.step.graph import results

pytestmark = pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")
SCALE = 2.0**10


def rows_of(
    made: Workload, policy: Policy | None = None, scale: float = SCALE
) -> tuple[list[NodeError], dict[str, str]]:
    """Return the rows, and per weight the node that is its gradient."""
    plain = capture(made)
    step = compiled(made, "interpreter", policy, LossScale.static(scale))
    named = results(step.step.gradient.graph)
    gradients = {k.removeprefix("grad."): v.name for k, v in named.items() if "grad." in k}
    return check(step, *made.batch, autocast=plain), gradients


@pytest.mark.parametrize("name", WORKLOADS)
def test_errors_of_gradients_are_those_of_plain_pytorch(name: str) -> None:
    made = WORKLOADS[name]()
    assert made.loss is not None
    truth = WORKLOADS[name]()
    truth.model.double()
    batch = [b.double() if b.is_floating_point() else b for b in made.batch]
    torch.autograd.backward(made.loss(truth.model, *batch))
    peer = WORKLOADS[name]()
    with torch.autocast("cpu", dtype=torch.float16):
        value = made.loss(peer.model, *made.batch)
    torch.autograd.backward(value.float() * SCALE)
    step = compiled(WORKLOADS[name](), "interpreter", None, LossScale.static(SCALE))
    ours = step.gradients(*made.batch)
    rows, gradients = rows_of(made)
    by_id = {row.id: row for row in rows}
    for weight, node in gradients.items():
        exact = truth.model.get_parameter(weight).grad
        theirs = peer.model.get_parameter(weight).grad
        assert exact is not None
        assert theirs is not None
        row = by_id[node]
        if row.full > 1e-3:  # a gradient that is zero but for rounding, and so is FP64's
            continue
        assert row.error == pytest.approx(relative_error(ours[weight], exact), rel=1e-6)
        assert row.autocast == pytest.approx(relative_error(theirs / SCALE, exact), rel=1e-3)


@pytest.mark.parametrize("name", ["gpt", "bert", "resnet", "unet", "dcgan"])
def test_correct_models_pass_and_most_tensors_have_a_twin_under_autocast(name: str) -> None:
    rows, _ = rows_of(workload(name, "cpu"))
    assert first_failure(rows, TOLERANCE) is None
    twins = [row for row in rows if row.autocast is not None]
    assert len(twins) > len(rows) / 2
    for row in twins:  # twins: what differs is rounding, not what is computed
        assert row.autocast is not None
        assert row.autocast <= max(TOLERANCE, row.explained), row


def test_a_gradient_that_is_zero_but_for_rounding_does_not_fail() -> None:
    """The bias before a batch norm: in FP64 its gradient is 1e-17, in FP16 1e-5."""
    rows, gradients = rows_of(WORKLOADS["convolution"]())
    (row,) = (row for row in rows if row.id == gradients["0.bias"])
    assert row.error > 1e3
    assert row.full > 1e3
    assert not row.fails(TOLERANCE)


@pytest.mark.parametrize(
    ("middle", "fault", "tolerance"),
    [
        (marked.Logits, "logits", TOLERANCE),
        (marked.Epsilon, "division", TOLERANCE),
        (marked.Sum, "sum", TOLERANCE),
        (marked.Stagnation, "stagnation", 0.005),
    ],
)
def test_a_planted_fault_is_the_first_over_the_tolerance(
    middle: Callable[[], nn.Module], fault: str, tolerance: float
) -> None:
    rows, _ = rows_of(marked.program(middle), FORCED)
    first = first_failure(rows, tolerance)
    assert first is not None
    assert (first.stage, first.where.line) == ("forward", line_of(fault))


def test_a_gradient_that_underflows_is_found_at_its_line_without_any_override() -> None:
    rows, gradients = rows_of(marked.program(marked.Underflow))
    first = first_failure(rows, TOLERANCE)
    assert first is not None
    assert (first.stage, first.where.line) == ("backward", line_of("underflow"))
    assert (first.error, first.own, first.vanished, first.zeros) == (1.0, 1.0, 1.0, 1.0)
    failed = {row.id for row in failures(rows, TOLERANCE)}
    lost = {weight for weight, node in gradients.items() if node in failed}
    assert lost == {"middle.faint.weight", "middle.faint.bias"}


def test_a_larger_loss_scale_brings_a_gradient_back() -> None:
    rows, _ = rows_of(marked.program(marked.Underflow), scale=2.0**22)
    first = first_failure(rows, TOLERANCE)
    assert first is None or first.vanished < 1.0


def test_headroom_zeros_and_subnormals_count_what_the_tensor_holds() -> None:
    made = marked.program(nn.Identity)
    x = torch.zeros(4, 8, 16)
    x[0, 0, :4] = torch.tensor([16376.0, 2.0**-15, 2.0**-30, -(2.0**-20)])
    made = Workload(made.model, (x, made.batch[1]), made.loss, made.optimizer)
    rows, _ = rows_of(made)
    (given,) = (row for row in rows if row.op == "batch.0")
    (cast,) = (row for row in rows if row.op == "_to_copy" and row.type == "f16[4,8,16]")
    count = x.numel()
    assert given.headroom_bits == cast.headroom_bits == 2.0
    assert (given.zeros, cast.zeros) == ((count - 4) / count, (count - 3) / count)
    assert (given.subnormals, cast.subnormals) == (3 / count, 2 / count)
    assert (given.vanished, cast.vanished) == (0.0, 1 / count)


def test_the_worse_of_two_batches_counts() -> None:
    made = marked.program(nn.Identity)
    assert made.data is not None
    step = compiled(made, "interpreter", None, LossScale.static(SCALE))
    first, second = (check(step, *batch) for batch in list(made.data)[:2])
    for a, b, both in zip(first, second, worst(first, second), strict=True):
        assert both.error == max(a.error, b.error)
        assert both.headroom_bits == min(a.headroom_bits or 99, b.headroom_bits or 99)


def test_keys_are_unique_and_survive_the_passes() -> None:
    step = compiled(workload("gpt", "cpu"), "interpreter")
    keys = keys_of(step.step.gradient.graph)
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize(
    ("value", "exact", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], float("inf")),
        ([3.0, 5.0], [3.0, 4.0], 0.2),
        ([float("inf"), 4.0], [3.0, 4.0], float("inf")),
        ([float("nan"), 4.0], [3.0, 4.0], float("inf")),
        ([float("-inf"), 4.0], [float("-inf"), 4.0], 0.0),
        ([float("-inf"), 5.0], [float("-inf"), 4.0], 0.25),
    ],
)
def test_relative_error(value: list[float], exact: list[float], error: float) -> None:
    ours, truth = torch.tensor(value), torch.tensor(exact, dtype=torch.float64)
    assert relative_error(ours, truth) == pytest.approx(error)
