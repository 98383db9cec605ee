"""Load a program that a command line names, and transform it."""

from __future__ import annotations

from rich.console import Console

from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import warnings_on_one_line
from mpcompile.pipeline import prove
from mpcompile.program.proof.verify import Proof
from mpcompile.program.workload import load
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.transformed import Choices, Transformed


def load_program(
    source: str, inputs: PlanInputs, console: Console, loop: Loop = PLAIN, *, whole: bool = True
) -> Transformed:
    """Load a program and transform it by its inputs, with each warning on one line."""
    return load_proved(source, inputs, console, loop, whole=whole)[0]


def load_proved(
    source: str,
    inputs: PlanInputs,
    console: Console,
    loop: Loop = PLAIN,
    *,
    whole: bool = True,
) -> tuple[Transformed, Proof | None]:
    """Do what `load_program` does; also return the proof of the first batch, if there is one.

    Without ``whole``, a program that cannot become one graph runs in pieces.
    """
    settings, plan = inputs.settings, inputs.plan
    workload = load(source)
    with console.status("transforming"), warnings_on_one_line():
        return prove(
            workload,
            Choices(
                policy=settings.policy,
                loss_scale=settings.scale,
                plan=plan,
                ranges=inputs.ranges,
                without=settings.without,
                loop=loop,
                verify=inputs.verify,
                whole=whole,
            ),
        )
