"""The application: one function per command, which passes typed options to the command's code.

Small files named by flags are read before that code is loaded, so that errors are reported early.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mpcompile import __version__, commands
from mpcompile.errors import BadInput
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
from mpcompile.options.arguments import AnySource, Source
from mpcompile.options.plan_flags import NO_FLAGS
from mpcompile.options.run import NO_CHECKPOINT_FLAGS, NO_ONNX_RUN_FLAGS, NO_PROCESS_FLAGS
from mpcompile.options.transform import NO_ONNX_FLAGS

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

Side = Annotated[
    str,
    Parameter(
        help="A plan.json, a folder that mpcompile has written, a program or an .onnx file; behind "
        "the last two perhaps @LEVEL or @FILE.toml, the policy to plan by."
    ),
]


@app.command
def bench(source: Source, *, options: BenchOptions = BenchOptions()) -> None:
    """Time a program's step beside eager FP32, autocast and torch.compile with autocast.

    Each way runs in a process of its own on the example batch, and compiles from an empty cache: in
    FP16 on CUDA, in BF16 on a CPU.
    """
    commands.bench.bench(source, options)


@app.command
def calibrate(source: Source, *, options: CalibrateOptions = CalibrateOptions()) -> None:
    """Run a program in FP32 on its own data, or a model on --data, and measure every tensor."""
    if source.endswith(".onnx"):
        commands.onnx_calibrate.calibrate(Path(source), options)
        return
    if options.data is not None:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data: it has its own")
    commands.calibrate.calibrate(source, options)


@app.command
def check(source: Source, *, options: CheckOptions = CheckOptions()) -> None:
    """Compare every tensor of a step, forward and backward, with FP64 and with eager autocast.

    Exit code 1 with the first node whose error is over the tolerance and more than rounding alone
    explains, or that is not finite.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.check.check(source, options, inputs)


@app.command
def diff(old: Side, new: Side, /, *, options: DiffOptions = DiffOptions()) -> int:
    """Say in words what changed between two plans, programs, models or policies.

    Exit code 0: both do the same to the same graph; 1: they differ. Reasons and source lines alone
    are no difference. `mpcompile diff model.py@careful model.py@paper` compares two policies.
    """
    return commands.diff.diff(old, new, options)


@app.command
def explain(
    source: AnySource,
    *names: Annotated[
        str, Parameter(help="Ops of the plan, nodes of the step, or paths of modules.")
    ],
    options: ExplainOptions = ExplainOptions(),
) -> None:
    """Say why a node or a module is in its precision, and what the other choice would cost."""
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.explain.explain(source, names, options, inputs)


@app.command
def export(source: Source, *, options: ExportOptions) -> None:
    """Write a program's training step, or its model for inference, as an ONNX graph.

    Beside a step, train.onnx, stand train.json and train.safetensors; stock ONNX Runtime trains it.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.export.export(source, options, inputs)


@app.command
def gradients(source: Source, *, options: GradientsOptions = GradientsOptions()) -> None:
    """Show gradients by their exponents, what FP16 loses of them, and the loss scale for them.

    It also says how many updates would vanish if the weights had no FP32 masters.
    """
    if source.endswith(".onnx"):
        raise BadInput(f"{source} has no loss and no optimizer", fix="name a program that has both")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.gradients.gradients(source, options, inputs)


@app.command
def inspect(source: AnySource, *, options: InspectOptions = InspectOptions()) -> None:
    """Show what runs in which precision, every cast, what is kept, memory, and the costs.

    Of a program it also prints what each pass changed and the least time that a step can take on a
    device.
    """
    if options.check is not None and options.model_explorer is None:
        raise BadInput("--check goes into files for Model Explorer", fix="give --model-explorer")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.inspect.inspect(source, options, inputs)


@app.command
def lint(source: Source | None = None, *, options: LintOptions = LintOptions()) -> int:
    """Find what goes wrong or slows down in 16 bits, each with its fix; exit 1 if there is any.

    Notes do not count: they say what mpcompile copes with.
    """
    if options.rules:
        commands.lint.print_rules()
        return 0
    if options.explain is not None:
        commands.lint.print_page(options.explain)
        return 0
    if source is None:
        raise BadInput("there is nothing to look at", fix="name a program or an .onnx file")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    return commands.lint.lint(source, options, inputs)


@app.command
def reduce(source: Source, *, options: ReduceOptions = ReduceOptions()) -> None:
    """Write the smallest part of a step that fails in 16 bits, as a script that imports torch only.

    A failure is a number that is not finite though it is in FP64, or an error that rounding alone
    does not explain. The script exits with 1 while it shows the failure, with 0 once it is gone.
    """
    if source.endswith(".onnx"):
        raise BadInput(f"{source} is an ONNX model", fix="reduce a training program")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.reduce.reduce(source, options, inputs)


@app.command
def report(source: AnySource, *, options: ReportOptions = ReportOptions()) -> None:
    """Write one HTML file that shows the graph before and after, its tables and plots.

    It needs no server and no network. Of a program it shows the step in FP32 and as transformed, of
    a model as it is and as it would be rewritten.
    """
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.report.report(source, options, inputs)


@app.command
def run(source: Source, *, options: RunOptions = RunOptions()) -> int:
    """Train a program in mixed precision on its own data, or a train.onnx on --data.

    If a step has to be skipped, it says which node made the first number that is not finite. With
    --out, SIGTERM and Ctrl-C finish the step and save it; it then exits with 143 or 130. On many
    processes: ``torchrun --nproc-per-node 4 -m -- mpcompile run model.py``, where each takes every
    fourth batch.
    """
    if source.endswith(".onnx"):
        if options.backend or options.flags != NO_FLAGS:
            raise BadInput(f"{source} was planned when it was exported", fix="leave out its flags")
        if options.log or options.tensorboard:
            raise BadInput(f"{source} keeps no log", fix="leave out --log and --tensorboard")
        if options.checkpoints != NO_CHECKPOINT_FLAGS:
            raise BadInput(f"{source} keeps no checkpoints", fix="leave out --out and the like")
        if options.processes != NO_PROCESS_FLAGS:
            raise BadInput(f"{source} runs alone", fix="leave out --shard and --reduce")
        commands.onnx_run.run(Path(source), options)
        return 0
    if options.onnx != NO_ONNX_RUN_FLAGS:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data, --output and the like")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    return commands.run.run(source, options, inputs)


@app.command
def schema(
    document: Annotated[
        Literal["settings", "plan"] | None, Parameter(help="Which one; default: both.")
    ] = None,
    *,
    options: SchemaOptions = SchemaOptions(),
) -> None:
    """Print the JSON schema of the settings in pyproject.toml and of plan.json."""
    del options
    commands.schema.schema(document)


@app.default
def transform(source: Source, *, options: TransformOptions = TransformOptions()) -> None:
    """Transform a training program, or a model as an .onnx file, and print what became of it.

    Of a program it writes plan and graphs into a folder; of an .onnx file the model in mixed
    precision, once that is valid and computes what the original does, and its plan.
    """
    if not source.endswith(".onnx") and options.onnx != NO_ONNX_FLAGS:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data, --target and the like")
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    if source.endswith(".onnx"):
        commands.onnx_rewrite.rewrite(Path(source), options, inputs)
    else:
        commands.transform.transform(source, options, inputs)


@app.command
def tune(source: Source, *, options: TuneOptions = TuneOptions()) -> None:
    """Find the fewest ops to return to FP32 so that a tolerance or a score holds."""
    if options.flags.plan is not None:
        raise BadInput(
            "the decisions of --plan hold before every override",
            fix="leave it out, and give overrides or --ranges",
        )
    inputs = commands.plan_inputs.read_plan_inputs(options.flags)
    commands.tune.tune(source, options, inputs)
