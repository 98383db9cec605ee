"""The application: one function per command, which passes typed options to the command's code.

Small files named by flags are read before that code is loaded, so that errors are reported early.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mpcompile import __version__, commands
from mpcompile.errors import BadInput, did_you_mean
from mpcompile.options import (
    BenchOptions,
    CalibrateOptions,
    CheckOptions,
    DiffOptions,
    ExplainOptions,
    ExportOptions,
    GradientsOptions,
    InspectOptions,
    LintOptions,
    ReduceOptions,
    ReportOptions,
    RunOptions,
    SchemaOptions,
    TransformOptions,
    TuneOptions,
)
from mpcompile.options.arguments import AnySource, ProgramSource, Source, is_there
from mpcompile.options.plan_flags import NO_FLAGS
from mpcompile.options.run import NO_CHECKPOINT_FLAGS, NO_ONNX_RUN_FLAGS, NO_PROCESS_FLAGS
from mpcompile.options.transform import NO_ONNX_FLAGS

app = App(
    name="mpcompile",
    version=__version__,
    help="Compile an FP32 PyTorch training step into mixed precision.\n\n"
    "`mpcompile model.py` transforms and explains; `mpcompile run model.py` trains. The file is "
    "your own code: it is executed. Settings are in `[tool.mpcompile]` of `pyproject.toml`. Exit "
    "codes: 0 done, 1 a check failed, 2 bad input, 3 the model cannot be captured, 4 another "
    "process is gone, 70 a defect of "
    "mpcompile, 130 or 143 stopped by a signal.",
    help_format="markdown",
)

Side = Annotated[
    str,
    Parameter(
        help="A plan.json, a folder that mpcompile has written, a program or an .onnx file; the "
        "last two may end in @LEVEL or @FILE.toml, the policy to plan with."
    ),
]


@app.command
def bench(source: ProgramSource, *, options: BenchOptions = BenchOptions()) -> None:
    """Time a program's step beside eager FP32, autocast and torch.compile with autocast.

    Each variant runs in its own process on the example batch and compiles with an empty cache, in
    FP16 on CUDA, in BF16 on a CPU.
    """
    commands.bench.bench(source, options)


@app.command
def calibrate(source: Source, *, options: CalibrateOptions = CalibrateOptions()) -> None:
    """Measure every tensor in FP32: a program on its own data, an .onnx model on --data."""
    if source.endswith(".onnx"):
        commands.onnx_calibrate.calibrate(Path(source), options)
        return
    if options.data is not None:
        raise BadInput(
            f"{source} is not an .onnx file", fix="leave out --data, because a program has its own"
        )
    commands.calibrate.calibrate(source, options)


@app.command
def check(source: ProgramSource, *, options: CheckOptions = CheckOptions()) -> None:
    """Compare every tensor of a step, forward and backward, with FP64 and with eager autocast.

    The exit code is 1 if the error of a node is over the tolerance and more than rounding alone
    explains, or if a node is not finite; the first such node is named.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.check.check(source, options, inputs)


@app.command
def diff(old: Side, new: Side, /, *, options: DiffOptions = DiffOptions()) -> int:
    """Say in words what changed between two plans, programs, models or policies.

    Exit code 0: both decide the same for the same graph; 1: they differ. Other reasons or source
    lines do not count. `mpcompile diff model.py@careful model.py@paper` compares two policies.
    """
    return commands.diff.diff(old, new, options)


@app.command
def explain(
    source: AnySource,
    *names: Annotated[
        str, Parameter(help="Names of ops of the plan or nodes of the step, or module paths.")
    ],
    options: ExplainOptions = ExplainOptions(),
) -> None:
    """Say why a node or a module is in its precision, and what the other choice would cost."""
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.explain.explain(source, names, options, inputs)


@app.command
def export(source: ProgramSource, *, options: ExportOptions) -> None:
    """Write a program's training step, or its model for inference, as an ONNX graph.

    A step is written as train.onnx, train.json and train.safetensors; ONNX Runtime alone trains it.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.export.export(source, options, inputs)


@app.command
def gradients(source: ProgramSource, *, options: GradientsOptions = GradientsOptions()) -> None:
    """Show the exponents of gradients, the share that FP16 loses, and the recommended loss scale.

    It also says how many updates would vanish if the weights had no FP32 masters.
    """
    if source.endswith(".onnx"):
        raise BadInput(f"{source} has no loss and no optimizer", fix="give a program that has both")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.gradients.gradients(source, options, inputs)


@app.command
def inspect(source: AnySource, *, options: InspectOptions = InspectOptions()) -> None:
    """Show the precision of every op, all casts, tensors kept for backward, memory and costs.

    For a program it also prints the changes of each pass and the least time of a step on a
    device.
    """
    if options.check is not None and options.model_explorer is None:
        raise BadInput("--check needs --model-explorer", fix="give --model-explorer DIR")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.inspect.inspect(source, options, inputs)


@app.command
def lint(source: Source | None = None, *, options: LintOptions = LintOptions()) -> int:
    """Find faults and slow parts in 16 bits, each with its fix; exit with 1 if there are any.

    Notes do not count: they name cases that mpcompile handles.
    """
    if options.rules:
        commands.lint.print_rules()
        return 0
    if options.explain is not None:
        commands.lint.print_page(options.explain)
        return 0
    if source is None:
        raise BadInput("no source was given", fix="give a program or an .onnx file")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    return commands.lint.lint(source, options, inputs)


@app.command
def reduce(source: ProgramSource, *, options: ReduceOptions = ReduceOptions()) -> None:
    """Write the smallest part of a step that fails in 16 bits, as a script that imports torch only.

    A failure is a number that is finite only in FP64, or an error that rounding alone
    does not explain. The script exits with 1 while it shows the failure, with 0 once it is gone.
    """
    if source.endswith(".onnx"):
        raise BadInput(f"{source} is an ONNX model", fix="give a training program")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.reduce.reduce(source, options, inputs)


@app.command
def report(source: AnySource, *, options: ReportOptions = ReportOptions()) -> None:
    """Write one HTML file that shows the graph before and after, its tables and plots.

    It needs no server and no network. It shows the step of a program in FP32 and transformed, or
    a model before and after the rewrite.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.report.report(source, options, inputs)


@app.command
def run(source: Source, *, options: RunOptions = RunOptions()) -> int:
    """Train a program in mixed precision on its own data, or a train.onnx on --data.

    If a step is skipped, it names the node that made the first number that is not finite. With
    --out, SIGTERM and Ctrl-C finish and save the step; the exit code is then 143 or 130. On several
    processes: ``torchrun --nproc-per-node 4 -m -- mpcompile run model.py``; each takes every
    fourth batch.
    """
    if source.endswith(".onnx"):
        if options.backend or options.flags != NO_FLAGS:
            raise BadInput(
                f"{source} was planned when it was exported",
                fix="leave out --backend and the planner's flags",
            )
        if options.log or options.tensorboard:
            raise BadInput(f"{source} writes no log", fix="leave out --log and --tensorboard")
        if options.checkpoints != NO_CHECKPOINT_FLAGS:
            raise BadInput(f"{source} writes no checkpoints", fix="leave out --out and its flags")
        if options.processes != NO_PROCESS_FLAGS:
            raise BadInput(f"{source} runs in one process", fix="leave out --shard and --reduce")
        commands.onnx_run.run(Path(source), options)
        return 0
    if options.onnx != NO_ONNX_RUN_FLAGS:
        raise BadInput(
            f"{source} is not an .onnx file", fix="leave out --data, --device, --output and --force"
        )
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    return commands.run.run(source, options, inputs)


@app.command
def schema(
    document: Annotated[
        Literal["settings", "plan"] | None, Parameter(help="Which schema; default: both.")
    ] = None,
    *,
    options: SchemaOptions = SchemaOptions(),
) -> None:
    """Print the JSON schema of the settings in pyproject.toml and of plan.json."""
    del options
    commands.schema.schema(document)


def is_no_command(_: object, source: str) -> None:
    """Say of a word that is no file and no module which command it may mean."""
    try:
        is_there(_, source)
    except BadInput as error:
        names = [name for name in app if not name.startswith("-")]
        if Path(source).suffix or os.sep in source:
            raise
        error.what = f"there is no command, file or module {source!r}"
        error.what += did_you_mean(source, names)
        raise


@app.default
def transform(
    source: Annotated[Source, Parameter(validator=is_no_command)],
    *,
    options: TransformOptions = TransformOptions(),
) -> None:
    """Transform a training program or an .onnx model, and print a summary.

    For a program it writes the plan and the graphs into a folder; for an .onnx file the model in
    mixed precision and its plan, if the new model is valid and computes the same as the original.
    """
    if not source.endswith(".onnx") and options.onnx != NO_ONNX_FLAGS:
        raise BadInput(
            f"{source} is not an .onnx file",
            fix="leave out --data, --target, --free-io and --tolerance",
        )
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    if source.endswith(".onnx"):
        commands.onnx_rewrite.rewrite(Path(source), options, inputs)
    else:
        commands.transform.transform(source, options, inputs)


@app.command
def tune(source: ProgramSource, *, options: TuneOptions = TuneOptions()) -> None:
    """Find the fewest ops to return to FP32 so that a tolerance or a score holds."""
    if options.flags.plan is not None:
        raise BadInput(
            "--plan overrides every override that tune tries",
            fix="leave out --plan, and give overrides or --ranges",
        )
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.tune.tune(source, options, inputs)
