"""The command line. Nothing here imports torch before a command really runs."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from mpcompile import __version__
from mpcompile.errors import CompileError

DEFECT = 70

app = App(
    name="mpcompile",
    version=__version__,
    help="Compile an FP32 PyTorch training step into mixed precision.\n\n"
    "`mpcompile model.py` transforms and explains; `mpcompile run model.py` trains. The file is "
    "your own code: it is executed. Exit codes: 0 done, 1 a check failed, 2 bad input, 3 the "
    "model cannot be captured, 70 a defect of mpcompile.",
    help_format="markdown",
)

Source = Annotated[str, Parameter(help="A file that defines workload(), or package.module:name.")]
Format = Annotated[
    Literal["fp16", "bf16", "fp32"], Parameter(help="The 16-bit format; fp32 changes nothing.")
]
Patterns = Annotated[
    tuple[str, ...],
    Parameter(
        help="Ops, modules or nodes to keep in FP32 (wildcards allowed; repeatable).", negative=()
    ),
]
HalfPatterns = Annotated[
    tuple[str, ...],
    Parameter(help="Ops, modules or nodes to run in 16 bits all the same.", negative=()),
]
Scale = Annotated[
    str, Parameter(help="dynamic, none, or a number; default: dynamic with fp16, else none.")
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


@app.default
def transform(
    source: Source,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Folder; default: NAME.mp here.")
    ] = None,
    precision: Format = "fp16",
    full: Patterns = (),
    half: HalfPatterns = (),
    loss_scale: Scale = "",
    force: Annotated[bool, Parameter(help="Replace an artifact folder.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Transform a training program, print what became of it, and write plan and graphs."""
    del debug
    _commands().transform(source, output, precision, full, half, loss_scale, force, json)


@app.command
def run(
    source: Source,
    *,
    steps: Annotated[int, Parameter(help="Training steps.")] = 100,
    precision: Format = "fp16",
    full: Patterns = (),
    half: HalfPatterns = (),
    loss_scale: Scale = "",
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Parameter(help="Default: inductor on CUDA, interpreter elsewhere."),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Train a program in mixed precision on its own data."""
    del debug
    _commands().run(source, steps, precision, full, half, loss_scale, backend, json)


def _commands() -> Any:
    return import_module("mpcompile.commands")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(exit_code(sys.argv[1:] if arguments is None else arguments))


def exit_code(arguments: list[str]) -> int:
    """Run the command line; return its exit code, with every failure as one sentence on stderr."""
    debug = "--debug" in arguments
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _say(" ".join(str(error).split()), 2)
    except CompileError as error:
        return _say(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe left (| head): not worth a word; keep Python from complaining too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        advice = "" if debug else " Run again with --debug for the traceback."
        return _say(f"this is a defect of mpcompile ({text}).{advice}", DEFECT, debug)
    return 0


def _say(sentence: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    here = f"{Path.cwd()}{os.sep}"  # a place below the working folder reads better without it
    sys.stderr.write(f"mpcompile: {sentence.replace(here, '')}\n")
    return code
