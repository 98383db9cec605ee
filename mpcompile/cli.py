"""The command line. Nothing here imports torch before a command really runs."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from mpcompile import __version__
from mpcompile.errors import BadInput, CompileError, printable

DEFECT = 70

app = App(
    name="mpcompile",
    version=__version__,
    help="Compile an FP32 PyTorch training step into mixed precision.\n\n"
    "`mpcompile model.py` transforms and explains; `mpcompile run model.py` trains. The file is "
    "your own code: it is executed. Settings stand in `[tool.mpcompile]` of `pyproject.toml`. Exit "
    "codes: 0 done, 1 a check failed, 2 bad input, 3 the model cannot be captured, 70 a defect of "
    "mpcompile.",
    help_format="markdown",
)

Source = Annotated[
    str, Parameter(help="A file that defines workload(), package.module:name, or an .onnx file.")
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
PlanPath = Annotated[Path, Parameter(help="A plan.json.")]


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

    def measured(self) -> Any:
        """Return the ranges that were given, read by what was given for them, or None."""
        return import_module("mpcompile.command_line").given_ranges(
            self.ranges, self.margin, self.release
        )


_NO_FLAGS = Flags()


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxFlags:
    """What only a model as an ``.onnx`` file takes."""

    data: Annotated[
        Path | None,
        Parameter(help="An .npz with inputs by name; for an .onnx model; default: made up."),
    ] = None
    target: Annotated[
        Literal["cuda", "cpu", "any"],
        Parameter(help="Where an .onnx model shall run; what has no 16-bit kernel stays FP32."),
    ] = "any"
    free_io: Annotated[
        bool,
        Parameter(help="Inputs and outputs of an .onnx model may be 16 bits.", negative=()),
    ] = False
    tolerance: Annotated[
        float | None,
        Parameter(help="Largest error of an .onnx model's outputs, as a part of their largest."),
    ] = None


_NO_ONNX_FLAGS = OnnxFlags()


@app.default
def transform(
    source: Source,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Folder; default: NAME.mp here.")
    ] = None,
    flags: Flags = _NO_FLAGS,
    onnx: OnnxFlags = _NO_ONNX_FLAGS,
    force: Annotated[bool, Parameter(help="Replace what is there.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Transform a training program, or a model as an .onnx file, and print what became of it.

    Of a program it writes plan and graphs into a folder; of an .onnx file the model in mixed
    precision, once that is valid and computes what the original does, and its plan.
    """
    del debug
    if source.endswith(".onnx"):
        command = import_module("mpcompile.onnx_rewrite_command")
        command.rewrite(
            Path(source), output, flags.given(), flags.plan, flags.measured(), onnx, force, json
        )
        return
    if onnx != _NO_ONNX_FLAGS:
        raise BadInput(f"{source} is no .onnx file", "", "leave out --data, --target and the like")
    _commands().transform(source, output, flags.given(), flags.plan, flags.measured(), force, json)


@Parameter(name="*")
@dataclass(frozen=True)
class TrainFlags:
    """What only a training step as a ``train.onnx`` takes."""

    data: Annotated[
        Path | None, Parameter(help="Of a train.onnx: an .npz with its batches by input.")
    ] = None
    device: Annotated[Literal["cpu", "cuda"], Parameter(help="Of a train.onnx: where it runs.")] = (
        "cpu"
    )
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="Of a train.onnx: a .safetensors for its state."),
    ] = None
    force: Annotated[bool, Parameter(help="Replace that file.", negative=())] = False


_NO_TRAIN_FLAGS = TrainFlags()


@app.command
def run(
    source: Source,
    *,
    steps: Annotated[int, Parameter(help="Training steps.")] = 100,
    flags: Flags = _NO_FLAGS,
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Parameter(help="Default: inductor on CUDA, interpreter elsewhere."),
    ] = None,
    onnx: TrainFlags = _NO_TRAIN_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Train a program in mixed precision on its own data, or a train.onnx on --data."""
    del debug
    if source.endswith(".onnx"):
        if backend or flags != _NO_FLAGS:
            raise BadInput(f"{source} was planned when it was exported", "", "leave out its flags")
        command = import_module("mpcompile.onnx_run_command")
        command.run(Path(source), onnx.data, steps, onnx.device, onnx.output, onnx.force, json)
        return
    if onnx != _NO_TRAIN_FLAGS:
        raise BadInput(f"{source} is no .onnx file", "", "leave out --data, --output and the like")
    given = {**flags.given(), **({"backend": backend} if backend else {})}
    _commands().run(source, steps, given, flags.plan, flags.measured(), json)


@app.command
def bench(
    source: Source,
    *,
    steps: Annotated[int, Parameter(help="Timed steps a way.")] = 30,
    warmup: Annotated[int, Parameter(help="Steps before them, after the first.")] = 5,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Time a program's step beside eager FP32, autocast and torch.compile with autocast.

    Each way runs in a process of its own on the example batch, and compiles from an empty cache: in
    FP16 on CUDA, in BF16 on a CPU.
    """
    del debug
    import_module("mpcompile.bench_command").bench(source, steps, warmup, json)


@app.command
def export(
    source: Source,
    *,
    to: Annotated[Path, Parameter(help="The .onnx file to write.")],
    kind: Annotated[
        Literal["step", "forward"] | None,
        Parameter(
            help="The whole training step, or the model for inference; default: forward for "
            "forward.onnx and for a program without a loss."
        ),
    ] = None,
    dynamic: Annotated[
        bool, Parameter(help="Leave the batch size of a forward pass open.", negative=())
    ] = False,
    flags: Flags = _NO_FLAGS,
    force: Annotated[bool, Parameter(help="Replace what is there.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Write a program's training step, or its model for inference, as an ONNX graph.

    Beside a step, train.onnx, stand train.json and train.safetensors; stock ONNX Runtime trains it.
    """
    del debug
    command = import_module("mpcompile.onnx_export_command")
    command.export(
        source, to, kind, dynamic, flags.given(), flags.plan, flags.measured(), force, json
    )


@app.command
def calibrate(
    source: Source,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.ranges.json.")
    ] = None,
    batches: Annotated[int, Parameter(help="The most batches to run.")] = 8,
    data: Annotated[
        Path | None, Parameter(help="Inputs of an .onnx model: an .npz with arrays by name.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Run a program in FP32 on its own data, or a model on --data, and measure every tensor."""
    del debug
    if source.endswith(".onnx"):
        command = import_module("mpcompile.onnx_rewrite_command")
        command.calibrate(Path(source), output, data, batches, force, json)
        return
    if data is not None:
        raise BadInput(f"{source} is no .onnx file", "", "leave out --data: it has its own")
    _commands().calibrate(source, output, batches, force, json)


@app.command
def inspect(
    source: Source,
    *,
    device: Annotated[
        Literal["h100", "h200", "a100", "v100", "cpu", "all"],
        Parameter(help="Whose bound; cpu is measured here, all compares the others."),
    ] = "h100",
    flags: Flags = _NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Print what each pass changed and the least time that a step can take on a device."""
    del debug
    command = import_module("mpcompile.inspect_command")
    command.inspect(source, device, flags.given(), flags.plan, flags.measured(), json)


@app.command
def diff(old: PlanPath, new: PlanPath, /, *, json: Json = None, debug: Debug = False) -> int:
    """Say in words what changed between two plans.

    Exit code 0: both do the same to the same graph; 1: they differ. Reasons and source lines alone
    are no difference.
    """
    del debug
    code: int = _plan_commands().diff(old, new, json)
    return code


@app.command
def schema(
    document: Annotated[
        Literal["settings", "plan"] | None, Parameter(help="Which one; default: both.")
    ] = None,
    *,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of the settings in pyproject.toml and of plan.json."""
    del debug
    _plan_commands().schema(document)


def _commands() -> Any:
    return import_module("mpcompile.commands")


def _plan_commands() -> Any:
    return import_module("mpcompile.plan_commands")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(exit_code(sys.argv[1:] if arguments is None else arguments))


def exit_code(arguments: list[str]) -> int:
    """Run the command line; return its exit code, with every failure as one sentence on stderr."""
    debug = "--debug" in arguments
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
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
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    here = f"{Path.cwd()}{os.sep}"  # a place below the working folder reads better without it
    sys.stderr.write(f"mpcompile: {printable(sentence.replace(here, ''))}\n")
    return code
