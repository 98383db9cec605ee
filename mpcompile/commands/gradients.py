"""``mpcompile gradients``: exponents, underflow in FP16, loss scale, vanishing updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say, warnings_on_one_line
from mpcompile.errors import BadInput, printable
from mpcompile.numerics.calibration import measure_ranges
from mpcompile.numerics.gradient_exponents import (
    Gradient,
    Underflow,
    gradients_in_fp16,
    joined,
    losses,
    most_lost,
    underflows,
)
from mpcompile.numerics.vanishing_updates import Vanishing, vanishing_updates
from mpcompile.options import GradientsOptions
from mpcompile.pipeline import describe
from mpcompile.plan.given import decide
from mpcompile.plan.ranges import Range, Ranges
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, capture
from mpcompile.program.unfit_constants import unfit_constants
from mpcompile.program.workload import Workload, load
from mpcompile.show.exponent_figure import exponent_figure
from mpcompile.show.exponent_plot import columns_for, exponent_plot, legend
from mpcompile.show.summary import numbers_table
from mpcompile.show.terminal import text_of, where_of
from mpcompile.step.loss_scale import HEADROOM_BITS, LossScale, recommended_scale

_SHOWN, _WIDEST = 10, 100
_PICTURES = ("svg", "png")


@dataclass(frozen=True, slots=True)
class Found:
    """The results of the command.

    Attributes:
        batches: how many batches were measured.
        gradients: the gradients that FP16 would hold.
        scale: the recommended loss scale; None if all gradients are zero or none is in FP16.
        underflows: where gradients begin to underflow without a scale.
        updates: the updates, per trained parameter.
        steps: how many updates were measured.
    """

    batches: int
    gradients: tuple[Gradient, ...]
    scale: float | None
    underflows: tuple[Underflow, ...]
    updates: tuple[Vanishing, ...]
    steps: int

    def held(self) -> dict[str, Range]:
        """Return the joint range of the gradients of activations, and of weights."""
        return {
            "activations": joined(item for item in self.gradients if not item.weight),
            "weights": joined(item for item in self.gradients if item.weight),
        }


def gradients(source: str, options: GradientsOptions, inputs: PlanInputs) -> None:
    """Measure, print and write.

    Args:
        source: a program.
        options: how much is measured, and where the results are written.
        inputs: how it is planned; given ranges decide, and none are measured in addition.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
    """
    console = open_terminal(options.json)
    if options.figure is not None:
        _check_figure(options.figure, options.force)
    workload = load(source)
    if workload.optimizer is None:
        raise BadInput(
            "the workload has no loss and no optimizer, so it has no gradients",
            workload.origin,
            "add both to the workload",
        )
    with console.status("measuring"), warnings_on_one_line():
        found = _measure(workload, options, inputs)
    _print(found, console)
    if options.figure is not None:
        title = f"{source}: exponents of gradients"
        kind = options.figure.suffix.removeprefix(".")
        picture = exponent_figure(title, found.held(), found.scale, kind)
        write_file(options.figure, picture, options.force)
        console.print(f"wrote {printable(str(options.figure))}", markup=False)
    write_json(options.json, {"source": source, **_document(found)})


def _check_figure(file: Path, force: bool) -> None:
    if file.suffix.removeprefix(".") not in _PICTURES:
        raise BadInput(
            f"{file} is neither .svg nor .png", fix="give --figure a name with one of these endings"
        )
    check_file(file, force)
    if find_spec("matplotlib") is None:
        raise BadInput(
            "--figure needs matplotlib, which is not installed", fix="pip install matplotlib"
        )


def _measure(workload: Workload, options: GradientsOptions, inputs: PlanInputs) -> Found:
    forward = capture(workload)
    policy = inputs.settings.policy
    unfit = unfit_constants(forward.module, forward.constants(), policy.precision)
    flow = describe(forward, policy, unfit)
    plan = decide(flow, policy.precision, inputs.plan, inputs.ranges)
    if plan.precision is not Precision.FP16:
        raise BadInput(
            f"the plan's precision is {plan.precision.value}, which needs no loss scale",
            fix="use --precision fp16",
        )
    measured = inputs.ranges or measure_ranges(workload, forward, options.batches)
    return _found(workload, forward, gradients_in_fp16(forward, plan, measured), measured, options)


def _found(
    workload: Workload,
    forward: Forward,
    held: tuple[Gradient, ...],
    measured: Ranges,
    options: GradientsOptions,
) -> Found:
    scale = recommended_scale(joined(held).largest_finite)
    return Found(
        batches=measured.batches,
        gradients=held,
        scale=scale,
        underflows=underflows(forward, measured, min(scale or 1.0, 1.0)),
        updates=vanishing_updates(workload, forward, options.steps),
        steps=options.steps,
    )


def _print(found: Found, console: Console) -> None:
    if not found.gradients:
        say(console, "No gradient would be in FP16, so no loss scale is needed.")
    else:
        _print_plots(found, console)
    for sentence in _sentences(found):
        say(console, sentence)
    if found.scale is not None:
        _print_most_lost(found.gradients, found.scale, console)
    _print_updates(found.updates, found.steps, console)


def _print_plots(found: Found, console: Console) -> None:
    scale = found.scale or 1.0
    columns = columns_for(joined(found.gradients), scale, min(console.width, _WIDEST))
    for name, held in found.held().items():
        if held.count:
            zero = f"{held.count:,} numbers in {found.batches} batches, {held.share_of_zeros:.1%}"
            title = f"gradients by {name}: {zero} zero"
            for line in exponent_plot(title, held, scale, columns):
                console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(legend(), no_wrap=True, overflow="ellipsis")


def _sentences(found: Found) -> list[str]:
    """Return the loss without a scale, the recommended scale, and the loss with it."""
    sentences = [
        f"{_named(item)} is not finite in {item.held.nonfinite:,} of {item.held.count:,} numbers "
        "in FP32 already; no loss scale can change that."
        for item in found.gradients
        if item.held.nonfinite
    ]
    if found.scale is None:
        return [*sentences, "All gradients are zero."] if found.gradients else sentences
    largest = max(found.gradients, key=lambda item: item.held.largest_finite)
    both = found.held()
    sentences.append(f"Without a loss scale: {_lost(both, 1.0)}.")
    sentences.append(
        f"Recommended loss scale: {_scale(found.scale)}, the largest power of two that keeps "
        f"the largest gradient, {largest.held.largest_finite:.4g} in the gradient by "
        f"{_described(largest)}, {HEADROOM_BITS} bits below overflow."
    )
    if found.scale < 1.0:
        sentences.append(
            "It is below 1, because the gradients are too large without a scale. Use "
            "LossScale.static, "
            f"or a dynamic scale with a floor this low (the default floor is "
            f"{LossScale().floor:g}), or divide the loss."
        )
    if found.scale != 1.0:
        sentences.append(f"With it: {_lost(both, found.scale)}.")
    for item in found.underflows[:_SHOWN]:
        lost, rest = (item.gradient.held.share_lost(scale) for scale in (1.0, found.scale))
        sentences.append(
            f"Underflow begins at {_named(item.gradient)}, which the backward of "
            f"{item.reader} ({where_of(item.where)}) makes: {lost:.1%} of it is below 2^-24, "
            f"with the scale {rest:.1%}."
        )
    if len(found.underflows) > _SHOWN:
        sentences.append(f"{len(found.underflows) - _SHOWN} more underflows begin elsewhere.")
    return sentences


def _lost(both: dict[str, Range], scale: float) -> str:
    """Say per kind of gradient which share FP16 loses."""
    parts = []
    for name, held in both.items():
        if held.count:
            share = losses(held, scale)
            over = ", and the largest overflow" if share.overflows else ""
            parts.append(
                f"of gradients by {name}, {share.lost:.2%} are below 2^-24 and lost, "
                f"{share.subnormal:.2%} are below 2^-14 and keep fewer digits{over}"
            )
    return "; ".join(parts)


def _named(gradient: Gradient) -> str:
    return f"the gradient by {_described(gradient)}"


def _described(gradient: Gradient) -> str:
    place = str(where_of(gradient.where))
    return f"{gradient.name} ({place})" if place else gradient.name


def _scale(scale: float) -> str:
    return f"{scale:g} = 2^{math.log2(scale):g}"


def _print_most_lost(gradients: Sequence[Gradient], scale: float, console: Console) -> None:
    lost = most_lost(gradients, scale)
    if not lost:
        return
    table = numbers_table(
        f"gradients with the largest losses, of {len(gradients)}: unscaled, and times {scale:g}",
        "gradient by",
        "largest",
        "below 2^-24",
        "times the scale",
    )
    table.add_column("where", overflow="fold")
    for item in lost[:_SHOWN]:
        table.add_row(
            text_of(item.name),
            f"{item.held.largest_finite:.4g}",
            f"{item.held.share_below_smallest:.1%}",
            f"{item.held.share_lost(scale):.1%}",
            where_of(item.where),
        )
    console.print(table)


def _print_updates(updates: Sequence[Vanishing], steps: int, console: Console) -> None:
    every = _every(updates)
    say(
        console,
        f"Without master weights, {every.share:.1%} of the nonzero updates would vanish "
        f"({every.vanished:,} of {every.count - every.zeros:,} in {steps} steps; {every.zeros:,} "
        "were zero): the FP16 weight plus the update rounds to the same weight.",
    )
    worst = sorted((item for item in updates if item.vanished), key=lambda item: -item.share)
    if not worst:
        return
    columns = ("parameter", "updates", "zero", "vanish")
    table = numbers_table(
        f"parameters with the most vanishing updates, of {len(updates)}", *columns
    )
    for item in worst[:_SHOWN]:
        cells = (f"{item.count:,}", f"{item.zeros:,}", f"{item.share:.1%}")
        table.add_row(text_of(item.parameter), *cells)
    console.print(table)


def _every(updates: Sequence[Vanishing]) -> Vanishing:
    return Vanishing(
        "",
        sum(item.count for item in updates),
        sum(item.zeros for item in updates),
        sum(item.vanished for item in updates),
    )


def _document(found: Found) -> dict[str, Any]:
    scale = found.scale
    scales = sorted({1.0, scale or 1.0})
    every = _every(found.updates)
    return {
        "batches": found.batches,
        "recommended_scale": scale,
        "histogram": {name: held.exponents for name, held in found.held().items()},
        "zeros": {name: held.share_of_zeros for name, held in found.held().items()},
        "lost": {
            name: [asdict(losses(held, item)) for item in scales]
            for name, held in found.held().items()
        },
        "gradients": [_gradient(item, scale or 1.0) for item in found.gradients],
        "underflows": [
            {
                "gradient": _gradient(item.gradient, scale or 1.0),
                "reader": item.reader,
                "where": asdict(item.where),
            }
            for item in found.underflows
        ],
        "updates": {
            "steps": found.steps,
            "share_vanished": every.share,
            "parameters": [asdict(item) | {"share": item.share} for item in found.updates],
        },
    }


def _gradient(item: Gradient, scale: float) -> dict[str, Any]:
    return {
        "tensor": item.tensor,
        "name": item.name,
        "weight": item.weight,
        "where": asdict(item.where),
        "largest": item.held.largest_finite,
        "zeros": item.held.zeros,
        "not_finite": item.held.nonfinite,
        "count": item.held.count,
        "lost": losses(item.held, 1.0).lost,
        "lost_scaled": losses(item.held, scale).lost,
    }
