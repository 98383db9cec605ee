"""Load the plan of a program or an ONNX model, made with given settings."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mpcompile.commands.load_program import load_program
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.onnx.rewrite import prepare
from mpcompile.onnx_graph.gate import read_model
from mpcompile.onnx_graph.kernels import Target
from mpcompile.pipeline import plan_of_pieces
from mpcompile.plan.given import decide
from mpcompile.plan.plan import Plan
from mpcompile.settings import Settings


def load_plan(source: str, settings: Settings, console: Console) -> Plan:
    """Return the plan of a program, or of an ``.onnx`` file for any target.

    Raises:
        BadInput, CannotCapture: the source is neither.
    """
    if source.endswith(".onnx"):
        wanted = settings.policy
        prepared = prepare(read_model(Path(source)), wanted, wanted.precision, Target.ANY)
        return decide(prepared.flow, wanted.precision)
    made = load_program(source, PlanInputs(settings, verify=False), console, whole=False)
    pieces = plan_of_pieces(made)
    return made.plan if pieces is None else pieces.plan
