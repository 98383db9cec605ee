"""``mpcompile report``: one HTML file that shows a graph before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_view import is_program, open_source
from mpcompile.commands.warnings import warnings_on_one_line
from mpcompile.numerics.run_log import read_run_log
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.gate import read_model
from mpcompile.pipeline import transform
from mpcompile.plan.plan import read_plan
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.plan.ranges import Ranges
from mpcompile.settings import Settings, find_settings
from mpcompile.show.html_report.check_file import read_check
from mpcompile.show.html_report.document import ReportInput, document
from mpcompile.show.html_report.page import render
from mpcompile.show.of_onnx import view_of_model
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import bytes_text
from mpcompile.show.view import BEFORE, View, read_view
from mpcompile.step.transformed import Choices


@dataclass(frozen=True, slots=True)
class Measured:
    """Files of what was measured, each perhaps.

    Attributes:
        log: of a run, see `mpcompile.numerics.run_log`.
        check: of a comparison, see `mpcompile.show.html_report.check_file`.
    """

    log: Path | None = None
    check: Path | None = None


def report(
    source: str,
    output: Path | None,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    measured: Measured,
    force: bool,
    json_to: str | None,
) -> None:
    """Write the report of a program, a model, a plan or an artifact folder.

    Args:
        source: see `mpcompile.commands.load_view.open_source`.
        output: the file; default: ``NAME.report.html`` in the working folder.
        flags: settings given on the command line.
        plan: a plan.json, for what is planned here.
        ranges: what was measured; of what is planned here it decides, too.
        measured: more to show.
        force: replace the file.
        json_to: where the document about what was written goes.

    Raises:
        BadInput: a file is not what it should be, or the report may not be written.
    """
    console = Console(stderr=json_to == "-", highlight=False)
    file = output or Path(f"{_name(source)}.report.html")
    check_file(file, force)
    check = read_check(measured.check) if measured.check else None
    log = read_run_log(measured.log) if measured.log else ()
    settings = find_settings(Path.cwd()).over(flags)
    before, after = _both(source, settings, plan, ranges, console)
    subject = ReportInput(after, before, ranges, check, log, quotes=is_program(source))
    page = render(document(subject), source)
    write_file(file, page, force)
    size = len(page.encode())
    console.print(f"wrote {file} ({bytes_text(size)}); open it in a browser", markup=False)
    write_json(json_to, _document(source, file, size, before, after))


def _both(
    source: str, settings: Settings, plan: Path | None, ranges: Ranges | None, console: Console
) -> tuple[View | None, View]:
    """Return the graph before, if it is known, and after."""
    if is_program(source):
        opened = open_source(source, settings, plan, ranges, console)
        assert opened.made is not None
        with console.status("transforming to FP32"):
            plain = transform(opened.made.workload, Choices(policy=FULL_PRECISION))
        return view_of(plain, source), opened.view
    # A model that we have rewritten says so at its nodes; then it is what there is to see.
    if source.endswith(".onnx"):
        shown = open_source(source, settings, None, None, console).view
        if not any(node.reason for node in shown.nodes):
            return shown, _rewritten(source, settings, plan, ranges, console)
    after = open_source(source, settings, plan, None, console).view
    before = Path(source) / BEFORE
    return (read_view(before) if before.is_file() else None), after


def _rewritten(
    source: str, settings: Settings, plan: Path | None, ranges: Ranges | None, console: Console
) -> View:
    given = read_plan(plan) if plan else None
    with console.status("rewriting"), warnings_on_one_line():
        made = rewrite(read_model(Path(source)), settings.policy, plan=given, ranges=ranges)
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
