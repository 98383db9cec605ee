"""``mpcompile model.onnx``: rewrite a model in mixed precision, and compare it with itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, warnings_on_one_line
from mpcompile.errors import BadInput, CheckFailed, printable
from mpcompile.onnx.batches import read_batches
from mpcompile.onnx.comparison import Comparison, compare
from mpcompile.onnx.rewrite import Rewritten
from mpcompile.onnx.rewrite import rewrite as rewrite_model
from mpcompile.onnx.sessions import Array, fault_of, input_types
from mpcompile.onnx_graph.gate import EXTERNAL_ABOVE, read_model, write_model
from mpcompile.onnx_graph.kernels import Target
from mpcompile.options import TransformOptions
from mpcompile.options.transform import OnnxFlags
from mpcompile.search.onnx_tune import OnnxSearch, TunedOnnx, keep_few

_BATCHES = 8


def rewrite(source: Path, options: TransformOptions, inputs: PlanInputs) -> None:
    """Rewrite a model, compare it with the original, and write it with its plan beside it.

    If an output is too far, the few ops are found that must stay in FP32.

    Raises:
        BadInput: the file is no valid model, or an argument is wrong.
        CheckFailed: an output is further from the original's than the tolerance and no few ops in
            FP32 mend it, or the two could not be compared.
    """
    console = open_terminal(options.json)
    onnx, settings = options.onnx, inputs.settings
    if onnx.tolerance is not None and not onnx.tolerance >= 0:
        raise BadInput(f"--tolerance is {onnx.tolerance:g}", fix="give 0 or more")
    if {"loss_scale", "without"} & options.flags.given().keys():
        what = "an .onnx model is not trained: it has no loss scale and no optional passes"
        raise BadInput(what, str(source), "leave out --loss-scale and --without")
    file = options.output or source.with_name(f"{source.stem}.{settings.precision}.onnx")
    plan_file = file.with_name(f"{file.stem}.plan.json")
    if os.path.realpath(file) == os.path.realpath(source):  # resolve() fails on links in a circle
        raise BadInput(f"the output {file} is the input file", fix="choose another --output")
    for path in (file, plan_file):
        check_file(path, options.force)
    original = read_model(source)
    with console.status("rewriting"), warnings_on_one_line():
        rewritten = _rewritten(original, onnx, inputs)
    with console.status("checking"):
        fault = fault_of(rewritten.model)
        if fault and not fault_of(original):
            raise CheckFailed(f"the rewritten model is not valid: {fault}", fix="report this model")
    with console.status("comparing"):
        found, why_not, unproven = None, "--no-check was given", None
        if options.check:
            found, why_not, unproven = _compared(original, rewritten, onnx)
    tuned = None
    if found is not None and not found.passed and inputs.plan is None:
        with console.status("finding the ops to keep in FP32"):
            tuned = keep_few(_search(original, onnx, inputs), rewritten)
    first = found and (found.first or found.worst)
    if tuned is not None:
        rewritten, found = tuned.rewritten, tuned.comparison
    _print(source, rewritten, found, why_not, tuned, console)
    if unproven is not None and rewritten.changed:
        raise unproven
    if found is not None and not found.passed:
        raise CheckFailed(
            f"the rewritten model does not compute what {source} computes: {first}",
            fix=f"{_advice(inputs)}, or give --no-check to write it all the same",
        )
    # Weights that came in a file of their own are written to one: never all in memory at once.
    apart = _weights(original) > source.stat().st_size
    written = write_model(rewritten.model, file, options.force, 0 if apart else EXTERNAL_ABOVE)
    write_file(plan_file, rewritten.plan.to_json() + "\n", options.force)
    console.print(f"wrote {', '.join(map(str, [*written, plan_file]))}", markup=False)
    write_json(options.json, _document(source, file, rewritten, found, why_not, tuned))


def _compared(
    original: ir.Model, rewritten: Rewritten, onnx: OnnxFlags
) -> tuple[Comparison | None, str, CheckFailed | None]:
    """Return the comparison, or why there is none, with the error that this is."""
    batches = _given(original, onnx)
    try:
        return compare(original, rewritten, batches, onnx.tolerance), "", None
    except BadInput as error:
        if onnx.data is not None:
            raise
        go_on = "give --no-check to write the rewritten model all the same"
        what = f"the rewritten model was not compared with the original: {error.what}"
        fix = f"{error.fix}, or {go_on}" if error.fix else go_on
        return None, error.what, CheckFailed(what, fix=fix)
    except CheckFailed as error:
        if Target(onnx.target) is not Target.CUDA:  # CUDA has kernels that no CPU has
            raise
        return None, error.what, None


def _given(original: ir.Model, onnx: OnnxFlags) -> list[Mapping[str, Array]] | None:
    """Return the user's batches, or None if numbers must be made up."""
    if onnx.data is None:
        return None
    return list(islice(read_batches(onnx.data, input_types(original)), _BATCHES))


def _rewritten(original: ir.Model, onnx: OnnxFlags, inputs: PlanInputs) -> Rewritten:
    return rewrite_model(
        original,
        inputs.settings.policy,
        plan=inputs.plan,
        ranges=inputs.ranges,
        target=Target(onnx.target),
        keep_io=not onnx.free_io,
    )


def _search(original: ir.Model, onnx: OnnxFlags, inputs: PlanInputs) -> OnnxSearch:
    return OnnxSearch(
        original,
        inputs.settings.policy,
        inputs.ranges,
        Target(onnx.target),
        not onnx.free_io,
        _given(original, onnx),
        onnx.tolerance,
    )


def _advice(inputs: PlanInputs) -> str:
    if inputs.plan is not None:
        return "change the given plan, whose decisions count before overrides"
    return (
        "no few ops in FP32 were found that mend it; measure with `mpcompile calibrate`, or raise "
        "--tolerance"
    )


def _print(
    source: Path,
    rewritten: Rewritten,
    found: Comparison | None,
    why_not: str,
    tuned: TunedOnnx | None,
    console: Console,
) -> None:
    plan = rewritten.plan
    kinds = Counter((decision.kind, decision.stores.short) for decision in plan.decisions)
    table = Table(title=escape(printable(f"{source} in {plan.precision.short}")))
    table.add_column("op")
    columns = [name for name in ("f16", "bf16", "f32") if any(s == name for _, s in kinds)]
    for name in columns:
        table.add_column(name, justify="right")
    for kind in sorted({kind for kind, _ in kinds}):
        cells = [str(kinds[kind, name] or "") for name in columns]
        table.add_row(escape(printable(kind)), *cells)
    console.print(table)
    more = "more" if rewritten.casts >= 0 else "fewer"
    lines = [f"{abs(rewritten.casts)} {more} casts than before", *rewritten.notes]
    if not rewritten.changed:
        lines = ["no op gains from 16 bits: the model is unchanged", *rewritten.notes]
    if tuned is not None:
        lines.append(str(tuned))
    if found is None:
        lines.append(f"not compared with the original: {why_not}")
    else:
        lines.append(
            f"largest error {found.worst.error:.3g} of {found.worst.scale} "
            f"({found.worst.tensor}, {found.batches} "
            + ("batch" if found.batches == 1 else "batches")
            + (" of made-up numbers)" if found.made_up else ")")
        )
        run = ", ".join(f"{count} {kind}" for kind, count in found.casts.items())
        lines.append(f"casts that ONNX Runtime runs on a CPU: {run or 'none'}")
    for line in lines:
        console.print(printable(line), markup=False)


def _weights(model: ir.Model) -> int:
    """Return the bytes of a model's weights."""
    held = [value.const_value for g in model.graphs() for value in g.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _document(
    source: Path,
    file: Path,
    rewritten: Rewritten,
    found: Comparison | None,
    why_not: str,
    tuned: TunedOnnx | None,
) -> dict[str, Any]:
    decisions = Counter(decision.stores.short for decision in rewritten.plan.decisions)
    return {
        "source": str(source),
        "output": str(file),
        "changed": rewritten.changed,
        "ops": dict(decisions),
        "kept": [f"node:{op}" for op in tuned.kept] if tuned else [],
        "casts": rewritten.casts,
        "notes": list(rewritten.notes),
        "errors": {d.tensor: d.error for d in found.outputs} if found else None,
        "not_compared": why_not or None,
        "casts_at_run_time": dict(found.casts) if found else None,
    }
