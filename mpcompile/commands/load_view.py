"""Open a source that a person can look at: a program, ONNX model, plan or artifact folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mpcompile.commands.load_program import load_program
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import warnings_on_one_line
from mpcompile.errors import BadInput, printable
from mpcompile.pieces.whole_plan import WholePlan
from mpcompile.pipeline import plan_of_pieces
from mpcompile.plan.plan import read_plan
from mpcompile.show.of_onnx import view_of_onnx
from mpcompile.show.of_pieces import view_of_pieces
from mpcompile.show.of_plan import view_of_plan
from mpcompile.show.of_step import view_of
from mpcompile.show.view import PLAN, VIEW, View, read_view
from mpcompile.step.transformed import Transformed


@dataclass(frozen=True)
class Opened:
    """An opened source.

    Attributes:
        view: its rows.
        made: the transformed program; None for a model, a plan or a folder.
        pieces: the plans of its pieces; None if it is one graph.
    """

    view: View
    made: Transformed | None = None
    pieces: WholePlan | None = None


def capture_pieces(made: Transformed, console: Console) -> WholePlan | None:
    """Return the plans of a program's pieces; None if it is one graph. The breaks are said."""
    with console.status("capturing the pieces"), warnings_on_one_line():
        pieces = plan_of_pieces(made)
    if pieces is not None:
        sys.stderr.write(f"mpcompile: {printable(pieces.sentence)}.\n")
    return pieces


def is_program(source: str) -> bool:
    """Return whether a source is a program, and not a file that is only read."""
    return not (source.endswith((".onnx", ".json")) or Path(source).is_dir())


def load_view(source: str, inputs: PlanInputs, console: Console) -> Opened:
    """Return the rows of a source; only a program is executed.

    Args:
        source: ``model.py``, ``package.module:name``, an ``.onnx`` file, a ``plan.json``, a
            ``view.json`` or a folder that `mpcompile model.py` has written.
        inputs: how a program is planned; other sources use only the settings.
        console: where warnings and progress are shown.

    Raises:
        BadInput: it is none of these, or a plan or ranges were given and it is no program.
    """
    if is_program(source):
        made = load_program(source, inputs, console, whole=False)
        pieces = capture_pieces(made, console)
        if pieces is None:
            return Opened(view_of(made, source), made)
        return Opened(view_of_pieces(pieces.plan, made, source), made, pieces)
    if inputs.plan_file is not None or inputs.ranges is not None:
        raise BadInput(f"{source} is not planned again", fix="leave out --plan and --ranges")
    path = Path(source)
    if source.endswith(".onnx"):
        return Opened(view_of_onnx(path, source))
    if path.is_dir():
        inside = [path / name for name in (VIEW, PLAN) if (path / name).is_file()]
        if not inside:
            raise BadInput(
                "the folder holds neither view.json nor plan.json",
                source or None,
                "give a folder that `mpcompile model.py` has written",
            )
        path = inside[0]
    if path.name.endswith(VIEW):
        return Opened(read_view(path))
    return Opened(view_of_plan(read_plan(path), source))
