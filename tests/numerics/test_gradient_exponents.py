"""Losses of FP16 gradients and the recommended scale, against counting and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from programs.tall import workload
from rich.console import Console
from torch import nn

from mpcompile.numerics.calibration import measure_ranges, range_of
from mpcompile.numerics.gradient_exponents import (
    Gradient,
    Underflow,
    gradients_in_fp16,
    joined,
    losses,
    most_lost,
    underflows,
)
from mpcompile.pipeline import describe
from mpcompile.plan.given import decide
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload
from mpcompile.show.exponent_plot import Zone, columns_for, exponent_plot, zone_of
from mpcompile.step.loss_scale import recommended_scale

finite = some.floats(2.0**-140, 2.0**120, width=32)


class Faint(nn.Module):
    """A net in which one of two branches hardly affects the result."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.loud, self.faint, self.factor = nn.Linear(8, 4), nn.Linear(8, 4), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heard: torch.Tensor = self.loud(x)
        whisper = torch.relu(self.faint(x))
        return heard + self.factor * whisper


def faint(factor: float) -> Workload:
    torch.manual_seed(0)
    model = Faint(factor)
    x, target = torch.randn(16, 8), torch.randint(0, 4, (16,))

    def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), target)

    return Workload(model, (x, target), loss, torch.optim.SGD(model.parameters(), lr=0.1))


def looked_at(work: Workload) -> tuple[tuple[Gradient, ...], tuple[Underflow, ...]]:
    forward = capture(work)
    plan = decide(describe(forward, Policy()), Precision.FP16)
    ranges = measure_ranges(work, forward, 8)
    return gradients_in_fp16(forward, plan, ranges), underflows(forward, ranges)


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


@pytest.mark.parametrize("factor", [1e-9, 1e-15])
def test_a_planted_underflow_is_named_by_tensor_module_and_line(factor: float) -> None:
    found, begins = looked_at(faint(factor))
    lost = {item.name for item in found if item.held.share_below_smallest == 1.0}
    others = {item.name: item.held.share_below_smallest for item in found if item.name not in lost}
    assert lost == {"linear_1", "relu", "faint.weight", "faint.bias"}
    assert others.keys() == {"linear", "add", "mul", "loud.weight", "loud.bias"}
    assert max(others.values()) == 0.0
    (begin,) = begins
    assert (begin.gradient.tensor, begin.reader) == ("relu", "mul")
    assert begin.where.line == line_of("return heard + self.factor * whisper")
    weight = next(item for item in found if item.name == "faint.weight")
    assert weight.where.module == "faint"
    assert weight.where.file == __file__
    assert weight.where.line == line_of("whisper = torch.relu(self.faint(x))")
    worst = most_lost(found, 2.0**14)
    assert {item.name for item in worst} == lost


def test_without_a_planted_underflow_none_is_found() -> None:
    found, begins = looked_at(faint(1.0))
    assert begins == ()
    assert most_lost(found, 1.0) == []


def test_the_gradient_by_the_loss_is_not_in_fp16_and_views_do_not_count_twice() -> None:
    found, _ = looked_at(faint(1.0))
    tensors = [item.tensor for item in found]
    assert "cross_entropy_loss" not in tensors
    assert len(tensors) == len(set(tensors))
    work = faint(1.0)

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.layer(x).view(16, 2, 2).unbind(1)
            return torch.cat([first, second], 1)

    model = Viewed()
    work = replace(work, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    activations = {item.tensor: item for item in looked_at(work)[0] if not item.weight}
    assert activations.keys() == {"linear", "cat"}
    assert activations["linear"].held == activations["cat"].held


@given(finite)
def test_the_recommended_scale_is_that_of_brute_force(largest: float) -> None:
    powers = [2.0**power for power in range(-149, 128)]
    fitting = [scale for scale in powers if largest * scale <= 65504 / 4]
    assert recommended_scale(largest) == max(fitting)


@pytest.mark.parametrize(
    ("largest", "scale"), [(16376.0, 1.0), (math.nextafter(16376.0, 1e9), 0.5), (1.0, 8192.0)]
)
def test_the_recommended_scale_at_its_edges(largest: float, scale: float) -> None:
    assert recommended_scale(largest) == scale


def test_the_recommended_scale_of_zeros_and_of_the_smallest_numbers() -> None:
    assert recommended_scale(0.0) is None
    assert recommended_scale(2.0**-149) == 2.0**127


@given(some.lists(some.floats(width=32), max_size=50), some.integers(-20, 40))
def test_losses_at_a_scale_agree_with_counting(numbers: list[float], power: int) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float32)
    found = losses(range_of(tensor), 2.0**power)
    sizes = np.abs(np.array(numbers, dtype=np.float64))
    # The exponents of FP32's subnormal numbers are not told apart.
    other = sizes[sizes != 0]
    scaled = other * 2.0**power
    count = max(len(other), 1)
    assert found.lost == pytest.approx((scaled < 2.0**-24).sum() / count)
    assert found.subnormal == pytest.approx(
        ((scaled >= 2.0**-24) & (scaled < 2.0**-14)).sum() / count
    )
    assert found.above == pytest.approx((~(scaled < 65536)).sum() / count)
    assert found.overflows == bool((scaled[np.isfinite(scaled)] > 65504).any())


def test_gradients_that_are_not_finite_and_those_of_zero() -> None:
    work = faint(1.0)

    def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((0 * model(x)).square()).sum()

    def nothing(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0 * model(x).sum()  # type: ignore[no-any-return]

    found, _ = looked_at(replace(work, loss=loss))
    assert any(item.held.nonfinite for item in found)
    found, begins = looked_at(replace(work, loss=nothing))
    assert joined(found).zeros == joined(found).count > 0
    assert recommended_scale(joined(found).largest_finite) is None
    assert begins == ()


def test_frozen_parameters_have_no_gradient() -> None:
    work = workload()
    work.model.rise.requires_grad_(False)
    found, _ = looked_at(work)
    assert not {"rise.weight", "rise.bias"} & {item.name for item in found}
    assert "fall.weight" in {item.name for item in found}


@pytest.mark.parametrize("width", [40, 50, 80, 200])
@pytest.mark.parametrize("power", [-140, -30, -10, 5, 100])
@pytest.mark.parametrize("scale", [1.0, 2.0**-8, 2.0**14, 2.0**100])
def test_the_plot_fits_and_shows_every_number(width: int, power: int, scale: float) -> None:
    held = range_of(torch.randn(1000) * 2.0**power)
    columns = columns_for(held, scale, width)
    lines = exponent_plot("gradients", held, scale, columns)
    assert max(len(line) for line in lines) <= width
    shown = set(columns)
    for exponent, _ in held.exponents:
        assert columns.start + (exponent - columns.start) // columns.step * columns.step in shown
    bottom = lines[6].plain[10:]
    filled = [start for start, bar in zip(columns, bottom, strict=True) if bar != " "]
    occupied = {
        columns.start + (e - columns.start) // columns.step * columns.step
        for e, _ in held.exponents
    }
    assert filled == sorted(occupied)


def test_the_window_is_drawn_at_the_edges_of_fp16() -> None:
    held = range_of(torch.tensor([2.0**-40, 2.0**-20, 1.0, 2.0**17]))
    columns = columns_for(held, 2.0**4, 100)
    ruler, edges, scaled, shifted = (
        line.plain for line in exponent_plot("", held, 16.0, columns)[7:]
    )
    for line, names, shift in ((ruler, edges, 0), (scaled, shifted, 4)):
        for edge, before, after in ((-24, "╌", "─"), (-14, "─", "━"), (16, "━", "x")):
            place = 10 + edge - shift - columns.start
            assert line[place - 1 : place + 1] == before + after
        assert names[10 + -24 - shift - columns.start] == "|"
        assert f"|2^{-24 - shift}" in names
    assert zone_of(15) is Zone.NORMAL


def test_the_plot_has_no_markup() -> None:
    console = Console(width=40, no_color=True, record=True)
    held = range_of(torch.tensor([1.0]))
    for line in exponent_plot("[bold]a[/bold]", held, 1.0, columns_for(held, 1.0, 40)):
        console.print(line)
    assert "[bold]a[/bold]" in console.export_text()
