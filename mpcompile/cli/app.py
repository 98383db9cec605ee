"""The application, and the arguments that commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from mpcompile import __version__

app = App(
    name="mpcompile",
    version=__version__,
    help="Compile an FP32 PyTorch training step into mixed precision.\n\n"
    "`mpcompile model.py` transforms and explains; `mpcompile run model.py` trains. The file is "
    "your own code: it is executed. Settings stand in `[tool.mpcompile]` of `pyproject.toml`. Exit "
    "codes: 0 done, 1 a check failed, 2 bad input, 3 the model cannot be captured, 70 a defect of "
    "mpcompile, 130 or 143 stopped by a signal.",
    help_format="markdown",
)

Source = Annotated[
    str, Parameter(help="A file that defines workload(), package.module:name, or an .onnx file.")
]
AnySource = Annotated[
    str,
    Parameter(
        help="A program, an .onnx file, a plan.json, or a folder that mpcompile has written."
    ),
]
Json = Annotated[
    str | None,
    Parameter(
        name="--json",
        help="Write one JSON document to a file, or to stdout with '-'.",
        allow_leading_hyphen=True,
    ),
]
Debug = Annotated[bool, Parameter(help="Show tracebacks.", negative=())]


def _patterns(what: str) -> Parameter:
    text = f"Ops, modules or nodes {what} (wildcards; repeatable)."
    return Parameter(help=text, negative=(), show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Flags:
    """What decides precisions and passes; what is not given is as ``[tool.mpcompile]`` says."""

    level: Annotated[
        Literal["careful", "paper", "tensor-cores-only", "fp32"] | None,
        Parameter(help="How much is stored in 16 bits; default: paper."),
    ] = None
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"] | None,
        Parameter(help="The 16-bit format; fp32 changes nothing; default: fp16."),
    ] = None
    full: Annotated[tuple[str, ...], _patterns("to keep in FP32")] = ()
    half: Annotated[tuple[str, ...], _patterns("to run in 16 bits all the same")] = ()
    free: Annotated[tuple[str, ...], _patterns("that may take either")] = ()
    plan: Annotated[
        Path | None,
        Parameter(help="A plan.json of this program; its decisions hold before everything else."),
    ] = None
    ranges: Annotated[
        Path | None,
        Parameter(help="What `mpcompile calibrate` measured; what came near overflow stays FP32."),
    ] = None
    margin: Annotated[
        int | None, Parameter(help="Bits to keep below the largest 16-bit number; default: 2.")
    ] = None
    release: Annotated[
        bool, Parameter(help="Store in 16 bits what could grow but did not.", negative=())
    ] = False
    loss_scale: Annotated[
        str | None,
        Parameter(help="dynamic, none, or a number; default: dynamic with fp16, else none."),
    ] = None
    without: Annotated[
        tuple[str, ...],
        Parameter(
            help="A pass to leave out, such as join_matmuls (repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()

    def given(self) -> dict[str, Any]:
        """Return what was given of the settings, by their names."""
        everything = {item.name: getattr(self, item.name) for item in fields(self)}
        other = ("plan", "ranges", "margin", "release")
        return {k: v for k, v in everything.items() if v not in (None, ()) and k not in other}

    def words(self) -> tuple[str, ...]:
        """Return what was given as words of a command line."""
        words: list[str] = []
        for item in fields(self):
            value, name = getattr(self, item.name), f"--{item.name.replace('_', '-')}"
            if value is True:
                words.append(name)
            elif value is not None and value is not False:
                for part in value if isinstance(value, tuple) else (value,):
                    words += [name, str(part)]
        return tuple(words)

    def measured(self) -> Any:
        """Return the ranges that were given, read by what was given for them, or None."""
        return import_module("mpcompile.commands.warnings").given_ranges(
            self.ranges, self.margin, self.release
        )


NO_FLAGS = Flags()
