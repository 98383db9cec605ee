"""A view as columns of numbers: each text once, in one table of strings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mpcompile.errors import printable
from mpcompile.show.view import PRECISIONS, STAGES, View

ROLES = ("input", "op", "cast", "view", "output")
LARGEST = 1 << 53
"""The largest number up to which a page counts exactly."""
_TEXTS = ("id", "op", "type", "planned", "rule", "reason", "computes", "stores")


class Strings:
    """A table of strings, fit to be shown: control and direction characters are written out."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self.shown: list[str] = []

    def place(self, text: str) -> int:
        """Return the place of a text in the table."""
        found = self._places.get(text)
        if found is None:
            found = self._places[text] = len(self.shown)
            self.shown.append(printable(text))
        return found


def columns_of_view(view: View, strings: Strings) -> dict[str, Any]:
    """Return a JSON-ready dictionary of lists, one element a node in each.

    Texts are places in ``strings``; role, stage and precision places in `ROLES`, `STAGES` and
    `PRECISIONS`; what a node reads are places of nodes.
    """
    nodes = view.nodes
    places = {node.id: place for place, node in enumerate(nodes)}
    columns: dict[str, Any] = {
        name: [strings.place(getattr(node, name)) for node in nodes] for name in _TEXTS
    }
    return columns | {
        "module": [strings.place(node.where.module) for node in nodes],
        "file": [strings.place(shown_file(node.where.file)) for node in nodes],
        "line": [min(node.where.line, LARGEST) for node in nodes],
        "role": [ROLES.index(node.role) for node in nodes],
        "stage": [STAGES.index(node.stage) for node in nodes],
        "precision": [PRECISIONS.index(node.precision) for node in nodes],
        "bytes": [min(node.bytes, LARGEST) for node in nodes],
        "alive": [min(node.alive, LARGEST) for node in nodes],
        "saved": [int(node.saved) for node in nodes],
        "reads": [[places[name] for name in node.reads] for node in nodes],
    }


def shown_file(file: str) -> str:
    """Return a path relative to the working folder: where that lies is nobody's business."""
    return file.removeprefix(f"{Path.cwd()}{os.sep}")
