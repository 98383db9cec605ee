"""The flags that decide precisions and passes, of every command that plans."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


def _patterns(what: str) -> Parameter:
    text = f"Ops, modules or nodes {what} (wildcards; repeatable)."
    return Parameter(help=text, negative=(), show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class PlanFlags:
    """What decides precisions and passes; what is not given is as ``[tool.mpcompile]`` says."""

    level: Annotated[
        Literal["careful", "paper", "tensor-cores-only", "fp32"] | None,
        Parameter(help="How many tensors are stored in 16 bits; default: paper."),
    ] = None
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"] | None,
        Parameter(help="The 16-bit format, or fp32 to keep the program unchanged; default: fp16."),
    ] = None
    full: Annotated[tuple[str, ...], _patterns("to keep in FP32")] = ()
    half: Annotated[tuple[str, ...], _patterns("to run in 16 bits against the level's rules")] = ()
    free: Annotated[tuple[str, ...], _patterns("whose precision the planner may choose")] = ()
    plan: Annotated[
        Path | None,
        Parameter(
            help=(
                "A plan.json of this program; its decisions override --level, --full, --half "
                "and --free."
            )
        ),
    ] = None
    ranges: Annotated[
        Path | None,
        Parameter(
            help="A file of `mpcompile calibrate`; tensors that came near overflow stay in FP32."
        ),
    ] = None
    margin: Annotated[
        int | None,
        Parameter(help="With --ranges: bits of headroom that FP16 must leave; default: 2."),
    ] = None
    release: Annotated[
        bool,
        Parameter(
            help="With --ranges: store in 16 bits the results that could overflow but stayed "
            "small.",
            negative=(),
        ),
    ] = False
    precision_budget: Annotated[
        float | None,
        Parameter(
            help="With --ranges: the largest measured error of what reads a 16-bit tensor; "
            "default: 0.0039 for FP16."
        ),
    ] = None
    loss_scale: Annotated[
        str | None,
        Parameter(
            help=(
                "The loss scale: auto, dynamic, none, or a number; default: auto with fp16, "
                "else none."
            )
        ),
    ] = None
    without: Annotated[
        tuple[str, ...],
        Parameter(
            help="An optional pass to leave out, such as join_matmuls (repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    verify: Annotated[
        bool, Parameter(help="Compare the captured graph with the program in eager PyTorch.")
    ] = True

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, by name."""
        everything = {item.name: getattr(self, item.name) for item in fields(self)}
        other = ("plan", "ranges", "margin", "release", "verify")
        return {k: v for k, v in everything.items() if v not in (None, ()) and k not in other}

    def words(self) -> tuple[str, ...]:
        """Return the given flags as words of a command line."""
        words: list[str] = []
        for item in fields(self):
            value, name = getattr(self, item.name), f"--{item.name.replace('_', '-')}"
            if item.default is True:
                words += [] if value else [f"--no-{name[2:]}"]
            elif value is True:
                words.append(name)
            elif value is not None and value is not False:
                for part in value if isinstance(value, tuple) else (value,):
                    words += [name, str(part)]
        return tuple(words)


NO_FLAGS = PlanFlags()
"""The flags if none is given."""
