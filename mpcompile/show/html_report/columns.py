"""A view as columns of numbers; each text is stored once, in one table of strings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mpcompile.errors import printable
from mpcompile.show.view import PRECISIONS, STAGES, View

ROLES = ("input", "op", "cast", "view", "output")
LARGEST = 1 << 53
"""The largest number up to which JavaScript's integers are exact."""
_TEXTS = ("id", "op", "type", "planned", "rule", "reason", "computes")


class Strings:
    """A table of strings for display: control and direction characters are written out."""

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}
        self.shown: list[str] = []

    def index(self, text: str) -> int:
        """Return the index of a text in the table."""
        found = self._indices.get(text)
        if found is None:
            found = self._indices[text] = len(self.shown)
            self.shown.append(printable(text))
        return found


def columns_of_view(view: View, strings: Strings) -> dict[str, Any]:
    """Return a JSON-ready dictionary of lists, with one element per node in each.

    Texts are indices into ``strings``. Role, stage and precision are indices into `ROLES`, `STAGES`
    and `PRECISIONS`. ``reads`` holds indices of nodes.
    """
    nodes = view.nodes
    indices = {node.id: index for index, node in enumerate(nodes)}
    columns: dict[str, Any] = {
        name: [strings.index(getattr(node, name)) for node in nodes] for name in _TEXTS
    }
    return columns | {
        "stores": [strings.index(node.stored) for node in nodes],
        "module": [strings.index(node.where.module) for node in nodes],
        "file": [strings.index(shown_file(node.where.file)) for node in nodes],
        "line": [min(node.where.line, LARGEST) for node in nodes],
        "role": [ROLES.index(node.role) for node in nodes],
        "stage": [STAGES.index(node.stage) for node in nodes],
        "precision": [PRECISIONS.index(node.precision) for node in nodes],
        "bytes": [min(node.bytes, LARGEST) for node in nodes],
        "alive": [min(node.alive, LARGEST) for node in nodes],
        "saved": [int(node.saved) for node in nodes],
        "reads": [[indices[name] for name in node.reads] for node in nodes],
    }


def shown_file(file: str) -> str:
    """Return a path relative to the working folder, so that a report does not reveal the folder."""
    return file.removeprefix(f"{Path.cwd()}{os.sep}")
