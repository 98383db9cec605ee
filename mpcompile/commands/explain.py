"""``mpcompile explain``: why a node is what it is, in sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.load_view import Opened, is_program, open_source
from mpcompile.errors import BadInput, printable
from mpcompile.onnx.rewrite import prepare
from mpcompile.onnx_graph.gate import read_model
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.given import decide
from mpcompile.plan.op_table import Wish
from mpcompile.plan.plan import Plan, read_plan
from mpcompile.plan.ranges import Ranges
from mpcompile.settings import Settings, find_settings
from mpcompile.show.explain import ExplainInput, explain
from mpcompile.show.of_plan import view_of_plan


def explain_source(
    source: str,
    names: tuple[str, ...],
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    json_to: str | None,
) -> None:
    """Print sentences about each name.

    Args:
        source: see `mpcompile.commands.load_view.open_source`.
        names: nodes, casts or modules.
        flags: settings given on the command line.
        plan: a plan.json, for a program.
        ranges: what was measured; of a program it decides, too.
        json_to: where the document goes.

    Raises:
        BadInput: there is no name, or nothing has it.
    """
    if not names:
        raise BadInput("nothing to explain was named", "", "name an op, a node or a module")
    console = Console(stderr=json_to == "-", highlight=False)
    settings = find_settings(Path.cwd()).over(flags)
    # Ranges say more of what is only read, but do not decide about it.
    deciding = ranges if is_program(source) else None
    opened = open_source(source, settings, plan, deciding, console)
    subject = _subject(opened, source, settings, plan, ranges)
    found = {name: explain(subject, name) for name in names}
    for place, sentences in enumerate(found.values()):
        if place:
            console.print()
        for sentence in sentences:
            console.print(printable(sentence), markup=False, soft_wrap=True)
    write_json(json_to, {"source": source, "explained": found})


def _subject(
    opened: Opened, source: str, settings: Settings, plan: Path | None, ranges: Ranges | None
) -> ExplainInput:
    view, made = opened.view, opened.made
    if made is not None:
        given = read_plan(plan) if plan else None
        planned = view_of_plan(made.plan, source)
        precision = made.choices.policy.precision

        def otherwise(op: str, full: bool) -> Plan:
            return decide(_asked(made.flow, op, full), precision, given, ranges)

        # What is given decides before any wish, so nothing can be asked of it.
        return ExplainInput(view, planned, made.plan, ranges, otherwise if given is None else None)
    noted = any(node.reason for node in view.nodes)
    if view.kind == "onnx" and not noted:
        return _model(opened, source, settings, ranges)
    return ExplainInput(view, view, ranges=ranges)


def _model(opened: Opened, source: str, settings: Settings, ranges: Ranges | None) -> ExplainInput:
    """Return what would become of a model that nobody has rewritten."""
    policy = settings.policy
    prepared = prepare(read_model(Path(source)), policy, policy.precision, Target.ANY)
    plan = decide(prepared.flow, policy.precision, None, ranges)

    def otherwise(op: str, full: bool) -> Plan:
        return decide(_asked(prepared.flow, op, full), policy.precision, None, ranges)

    return ExplainInput(opened.view, view_of_plan(plan, source), plan, ranges, otherwise)


def _asked(flow: Dataflow, op: str, full: bool) -> Dataflow:
    """Return a graph in which the user asks for an op to be FP32, or 16 bits."""
    wish = Wish.FULL if full else Wish.HALF
    ops = tuple(
        replace(item, wish=wish, overridden=True) if item.id == op else item for item in flow.ops
    )
    return replace(flow, ops=ops)
