"""Nodes as comma-separated values, for a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import TextIO

from mpcompile.show.view import ViewNode

_COLUMNS = (
    "id", "op", "role", "stage", "precision", "computes", "stores", "type", "bytes", "saved",
    "alive", "module", "file", "line", "rule", "reason",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(nodes: Iterable[ViewNode], to: TextIO) -> None:
    """Write a header, then one row per node.

    A name that a spreadsheet would read as a formula gets an apostrophe in front.
    """
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for node in nodes:
        where = node.where
        cells = [
            *(getattr(node, name) for name in _COLUMNS[:11]),
            *(where.module, where.file, where.line, node.rule, node.reason),
        ]
        writer.writerow([_harmless(cell) for cell in cells])


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
