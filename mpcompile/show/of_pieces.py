"""A program in pieces as rows for a person: the plan of its pieces, and the update."""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.plan import Plan
from mpcompile.show.of_plan import view_of_plan
from mpcompile.show.of_step import view_of
from mpcompile.show.view import View
from mpcompile.step.transformed import Transformed


def view_of_pieces(plan: Plan, made: Transformed, source: str) -> View:
    """Return a view of a program in pieces.

    Forward is the plan of all pieces. PyTorch makes the backward of each piece when it runs, so
    there is none, and the bytes that are alive are not known.

    Args:
        plan: of all pieces.
        made: the program; its step gives the update.
        source: its name, as the user gave it.
    """
    forward = view_of_plan(plan, source)
    update = [replace(node, alive=0) for node in view_of(made, source).nodes]
    nodes = (*forward.nodes, *(node for node in update if node.stage == "update"))
    return View(source, "program", forward.precision, nodes)
