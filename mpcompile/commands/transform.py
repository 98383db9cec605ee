"""``mpcompile model.py``: transform a program, print the summary, write the artifacts."""

from __future__ import annotations

import json
from pathlib import Path

from mpcompile.artifacts import check_free, write_folder, write_json
from mpcompile.commands.first_batch import check_first_batch, in_words
from mpcompile.commands.load_program import load_proved
from mpcompile.commands.load_view import capture_pieces
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say
from mpcompile.options import TransformOptions
from mpcompile.pieces.whole_plan import WholePlan
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import source_name
from mpcompile.show.of_pieces import view_of_pieces
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import print_summary, summarize
from mpcompile.show.view import BEFORE, PLAN, VIEW
from mpcompile.step.transformed import Choices, Transformed


def transform(source: str, options: TransformOptions, inputs: PlanInputs) -> None:
    """Transform, print the summary, write the artifacts.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
        CheckFailed: the first batch in 16 bits is too far from FP32; nothing is written.
    """
    console = open_terminal(options.json)
    folder = options.output or Path(f"{source_name(source)}.mp")
    check_free(folder, options.force)
    mixed, proof = load_proved(source, inputs, console, whole=False)
    pieces = capture_pieces(mixed, console)
    first = check_first_batch(source, mixed, proof, console) if options.check else None
    with console.status("transforming"):
        full = Choices(policy=FULL_PRECISION, verify=False, whole=False)
        plain = transform_workload(mixed.workload, full)
        summary = summarize(mixed, plain, pieces)
    plan = mixed.plan if pieces is None else pieces.plan
    files = _of_graph(mixed, plain, source) if pieces is None else _of_pieces(mixed, pieces, source)
    files["summary.json"] = json.dumps(summary.to_dict(), indent=1) + "\n"
    if mixed.step is not None:
        files["step.txt"] = f"{mixed.step}\n"
    write_folder(folder, files, options.force)
    by_plan = options.flags.plan
    how = f"by {by_plan}" if by_plan else f"level {mixed.choices.policy.level.value}"
    print_summary(summary, f"{source} in {plan.precision.name.lower()}, {how}", console)
    if first is not None:
        say(console, in_words(first))
    for line in pieces.lines if pieces is not None else ():
        say(console, line)
    console.print(f"wrote {folder}/: {', '.join(files)}")
    write_json(options.json, {"source": source, "output": str(folder), **summary.to_dict()})


def _of_graph(mixed: Transformed, plain: Transformed, source: str) -> dict[str, str]:
    return {
        PLAN: mixed.plan.to_json() + "\n",
        VIEW: view_of(mixed, source).to_json() + "\n",
        BEFORE: view_of(plain, source).to_json() + "\n",
        "forward.before.txt": graph_text(plain.forward.module.graph) + "\n",
        "forward.after.txt": graph_text(mixed.forward.module.graph) + "\n",
        "decisions.txt": _decisions(mixed.plan),
    }


def _of_pieces(mixed: Transformed, pieces: WholePlan, source: str) -> dict[str, str]:
    before = view_of_pieces(pieces.in_fp32().plan, mixed, source)
    return {
        PLAN: pieces.plan.to_json() + "\n",
        VIEW: view_of_pieces(pieces.plan, mixed, source).to_json() + "\n",
        BEFORE: before.to_json() + "\n",
        "pieces.txt": "\n".join(pieces.lines) + "\n",
        "decisions.txt": _decisions(pieces.plan),
    }


def _decisions(plan: Plan) -> str:
    rows = [
        (d.op, d.kind, d.computes.short, d.stores.short, str(d.where), d.reason)
        for d in plan.decisions
    ]
    head = ("node", "op", "computes", "stores", "where", "why")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines) + "\n"
