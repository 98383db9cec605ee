"""``mpcompile explain``: say in sentences why a node has its precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mpcompile.artifacts import write_json
from mpcompile.commands.load_view import Opened, is_program, load_view
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say
from mpcompile.errors import BadInput
from mpcompile.onnx.rewrite import prepare
from mpcompile.onnx_graph.gate import read_model
from mpcompile.onnx_graph.kernels import Target
from mpcompile.options import ExplainOptions
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.given import decide
from mpcompile.plan.plan import Plan
from mpcompile.plan.rule import Wish
from mpcompile.show.explain import ExplainInput
from mpcompile.show.explain import explain as sentences_about
from mpcompile.show.of_plan import view_of_plan


def explain(
    source: str, names: tuple[str, ...], options: ExplainOptions, inputs: PlanInputs
) -> None:
    """Print sentences about each name.

    Args:
        source: see `mpcompile.commands.load_view.load_view`.
        names: nodes, casts or modules.
        options: where the document is written.
        inputs: how a program is planned; its ranges also give the numbers that an op holds.

    Raises:
        BadInput: there is no name, or no node, cast or module has it.
    """
    if not names:
        raise BadInput(
            "no name was given", fix="give the name of an op, a node or a module after the source"
        )
    console = open_terminal(options.json)
    # Ranges add facts about a source that is only read, but decide nothing there.
    deciding = inputs if is_program(source) else replace(inputs, ranges=None)
    opened = load_view(source, deciding, console)
    subject = _subject(opened, source, inputs)
    found = {name: sentences_about(subject, name) for name in names}
    for place, sentences in enumerate(found.values()):
        if place:
            console.print()
        for sentence in sentences:
            say(console, sentence)
    write_json(options.json, {"source": source, "explained": found})


def _subject(opened: Opened, source: str, inputs: PlanInputs) -> ExplainInput:
    view, made, ranges, pieces = opened.view, opened.made, inputs.ranges, opened.pieces
    if pieces is not None:

        def in_its_piece(op: str, full: bool) -> Plan:
            return pieces.otherwise(op, lambda flow, name: _asked(flow, name, full))

        return ExplainInput(view, view, pieces.plan, ranges, in_its_piece)
    if made is not None:
        given = inputs.plan
        planned = view_of_plan(made.plan, source)
        precision = made.choices.policy.precision

        def otherwise(op: str, full: bool) -> Plan:
            return decide(_asked(made.flow, op, full), precision, given, ranges)

        # A plan that is given decides before any wish, so no other choice can be tried on it.
        return ExplainInput(view, planned, made.plan, ranges, otherwise if given is None else None)
    noted = any(node.reason for node in view.nodes)
    if view.kind == "onnx" and not noted:
        return _model(opened, source, inputs)
    return ExplainInput(view, view, ranges=ranges)


def _model(opened: Opened, source: str, inputs: PlanInputs) -> ExplainInput:
    """Return the rows of a model as a rewrite would change it."""
    policy, ranges = inputs.settings.policy, inputs.ranges
    prepared = prepare(read_model(Path(source)), policy, policy.precision, Target.ANY)
    plan = decide(prepared.flow, policy.precision, None, ranges)

    def otherwise(op: str, full: bool) -> Plan:
        return decide(_asked(prepared.flow, op, full), policy.precision, None, ranges)

    return ExplainInput(opened.view, view_of_plan(plan, source), plan, ranges, otherwise)


def _asked(flow: Dataflow, op: str, full: bool) -> Dataflow:
    """Return a graph in which the user requests FP32, or 16 bits, for an op."""
    wish = Wish.FULL if full else Wish.HALF
    ops = tuple(
        replace(item, wish=wish, overridden=True) if item.id == op else item for item in flow.ops
    )
    return replace(flow, ops=ops)
