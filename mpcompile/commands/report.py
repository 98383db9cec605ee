"""``mpcompile report``: one HTML file that shows a graph before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_view import is_program, load_view
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, warnings_on_one_line
from mpcompile.numerics.run_log import read_run_log
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.gate import read_model
from mpcompile.options import ReportOptions
from mpcompile.pipeline import transform
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.show.html_report.check_file import read_check
from mpcompile.show.html_report.document import ReportInput, document
from mpcompile.show.html_report.page import render
from mpcompile.show.of_onnx import view_of_model
from mpcompile.show.of_pieces import view_of_pieces
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import bytes_text
from mpcompile.show.view import BEFORE, View, read_view
from mpcompile.step.transformed import Choices


def report(source: str, options: ReportOptions, inputs: PlanInputs) -> None:
    """Write the report of a program, a model, a plan or an artifact folder.

    Args:
        source: see `mpcompile.commands.load_view.load_view`.
        options: the extra contents, and where the report is written.
        inputs: how it is planned, if it is planned here; ranges are also shown.

    Raises:
        BadInput: a file is wrong, or the report may not be written.
    """
    console = open_terminal(options.json)
    file = options.output or Path(f"{_name(source)}.report.html")
    check_file(file, options.force)
    check = read_check(options.check) if options.check else None
    log = read_run_log(options.log) if options.log else ()
    before, after = _both(source, inputs, console)
    subject = ReportInput(after, before, inputs.ranges, check, log, quotes=is_program(source))
    page = render(document(subject), source)
    write_file(file, page, options.force)
    size = len(page.encode())
    console.print(f"wrote {file} ({bytes_text(size)}); open it in a browser", markup=False)
    write_json(options.json, _document(source, file, size, before, after))


def _both(source: str, inputs: PlanInputs, console: Console) -> tuple[View | None, View]:
    """Return the graph before, if it is known, and after."""
    if is_program(source):
        opened = load_view(source, inputs, console)
        assert opened.made is not None
        if opened.pieces is not None:
            plan = opened.pieces.in_fp32().plan
            return view_of_pieces(plan, opened.made, source), opened.view
        with console.status("transforming to FP32"):
            plain = transform(opened.made.workload, Choices(policy=FULL_PRECISION, verify=False))
        return view_of(plain, source), opened.view
    # Nodes of a rewritten model say that they are rewritten; such a model is shown as it is.
    if source.endswith(".onnx"):
        shown = load_view(source, PlanInputs(inputs.settings), console).view
        if not any(node.reason for node in shown.nodes):
            return shown, _rewritten(source, inputs, console)
    after = load_view(source, replace(inputs, ranges=None), console).view
    before = Path(source) / BEFORE
    return (read_view(before) if before.is_file() else None), after


def _rewritten(source: str, inputs: PlanInputs, console: Console) -> View:
    plan = inputs.plan
    with console.status("rewriting"), warnings_on_one_line():
        made = rewrite(
            read_model(Path(source)),
            inputs.settings.policy,
            plan=plan,
            ranges=inputs.ranges,
        )
    return view_of_model(made.model, source)


def _document(
    source: str, file: Path, size: int, before: View | None, after: View
) -> dict[str, Any]:
    return {
        "source": source,
        "output": str(file),
        "bytes": size,
        "nodes": {
            "before": len(before.nodes) if before is not None else None,
            "after": len(after.nodes),
        },
    }


def _name(source: str) -> str:
    path = Path(source)
    if path.suffix in (".py", ".onnx", ".json") or path.is_dir():
        return path.resolve().stem if path.is_dir() else path.stem
    return source.partition(":")[0].rpartition(".")[2]
