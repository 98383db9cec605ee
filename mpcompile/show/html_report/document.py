"""The content of a report, as one compact JSON-ready document."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpcompile import __version__
from mpcompile.numerics.run_log import RunRow, SkipCause
from mpcompile.plan.ranges import Range, Ranges
from mpcompile.show.html_report.check_file import Check
from mpcompile.show.html_report.columns import LARGEST, ROLES, Strings, columns_of_view, shown_file
from mpcompile.show.html_report.counterparts import counterparts
from mpcompile.show.tables import (
    casts_of,
    columns_of,
    largest_of,
    ops_by_precision,
    peak_of,
    saved_of,
)
from mpcompile.show.view import PRECISIONS, STAGES, View

_COSTS, _MEMORY_COLUMNS, _MOST_STEPS, _MOST_SKIPS = 200, 400, 4000, 2000


@dataclass(frozen=True)
class ReportInput:
    """The input of a report.

    Attributes:
        after: the graph in mixed precision; the only graph if no other is known.
        before: the graph in FP32.
        ranges: the measured ranges of tensors.
        check: the errors of nodes against a reference.
        log: the steps of a run.
        quotes: whether to quote the source lines of nodes. Only for a program that the user has
            run: an untrusted file may name any file.
    """

    after: View
    before: View | None = None
    ranges: Ranges | None = None
    check: Check | None = None
    log: tuple[RunRow, ...] = ()
    quotes: bool = False


def document(subject: ReportInput) -> dict[str, Any]:
    """Return the document; ``page/data.js`` reads it."""
    strings = Strings()
    panes = []
    if subject.before is not None:
        panes.append(_pane("before", subject.before, strings))
    panes.append(_pane("after", subject.after, strings))
    after = subject.after
    return {
        "version": 1,
        "tool": __version__,
        "source": strings.index(after.source),
        "kind": after.kind,
        "format": after.precision,
        "names": {"roles": ROLES, "stages": STAGES, "precisions": PRECISIONS},
        "panes": panes,
        "twins": counterparts(subject.before, after) if subject.before is not None else None,
        "tables": _tables(after, strings),
        "ranges": _ranges(subject.ranges, strings) if subject.ranges is not None else None,
        "check": _check(subject.check, strings) if subject.check is not None else None,
        "log": _log(subject.log, strings) if subject.log else None,
        "quotes": _quotes(after, strings) if subject.quotes else [],
        "strings": strings.shown,
    }


def _pane(name: str, view: View, strings: Strings) -> dict[str, Any]:
    peak = peak_of(view)
    memory = [
        [min(alive, LARGEST), STAGES.index(stage)]
        for alive, stage in columns_of(view, _MEMORY_COLUMNS)
    ]
    return {
        "name": name,
        "nodes": columns_of_view(view, strings),
        "memory": memory,
        "peak": [strings.index(peak.id), min(peak.alive, LARGEST)] if peak else None,
    }


def _tables(view: View, strings: Strings) -> dict[str, Any]:
    indices = {node.id: index for index, node in enumerate(view.nodes)}
    return {
        "ops": [
            [stage, [[strings.index(op), *row.values()] for op, row in counts.items()]]
            for stage, counts in ops_by_precision(view.nodes).items()
        ],
        "casts": [[indices[row.id], min(row.bytes, LARGEST)] for row in casts_of(view, view.nodes)],
        "saved": [indices[node.id] for node in saved_of(view.nodes)],
        "costs": [
            [indices[node.id], min(moved, LARGEST)]
            for node, moved in largest_of(view, view.nodes)[:_COSTS]
        ],
    }


def _ranges(ranges: Ranges, strings: Strings) -> dict[str, Any]:
    return {
        "batches": ranges.batches,
        "values": _held(ranges.values, strings),
        "gradients": _held(ranges.gradients, strings),
    }


def _held(held: Mapping[str, Range], strings: Strings) -> list[list[Any]]:
    return [
        [
            strings.index(name),
            item.largest_finite,
            item.count,
            item.zeros,
            item.nonfinite,
            [exponent for exponent, _ in item.exponents],
            [count for _, count in item.exponents],
        ]
        for name, item in held.items()
    ]


def _check(check: Check, strings: Strings) -> dict[str, Any]:
    rows = [
        [
            *(strings.index(row.id), row.error, row.autocast),
            *(row.headroom_bits, row.zeros, row.subnormals),
        ]
        for row in check.nodes.values()
    ]
    return {"reference": strings.index(check.reference), "rows": rows}


def _log(log: tuple[RunRow, ...], strings: Strings) -> dict[str, Any]:
    """Return steps as columns: every skipped step, and as many others as a plot can show."""
    every = -(-len(log) // _MOST_STEPS)
    skipped = [row for row in log if row.skipped]
    kept = {id(row) for row in skipped[:_MOST_SKIPS]}
    rows = [row for index, row in enumerate(log) if index % every == 0 or id(row) in kept]
    return {
        "steps": len(log),
        "skips": len(skipped),
        "step": [row.step for row in rows],
        "loss": [row.loss for row in rows],
        "scale": [row.scale for row in rows],
        "skipped": [
            [index, _cause(row.cause, strings)] for index, row in enumerate(rows) if row.skipped
        ],
    }


def _cause(cause: SkipCause | None, strings: Strings) -> dict[str, Any] | None:
    if cause is None:
        return None
    texts = ("node", "op", "stage", "module", "why")
    return {name: strings.index(getattr(cause, name)) for name in texts} | {
        "file": strings.index(shown_file(cause.file)),
        "line": cause.line,
        "gradients": [strings.index(name) for name in cause.gradients],
        "expected": cause.expected,
    }


def _quotes(view: View, strings: Strings) -> list[list[int]]:
    """Return file, line and text of each source line that a node comes from."""
    found = {(node.where.file, node.where.line) for node in view.nodes if node.where.file}
    quoted = ((file, line, linecache.getline(file, line).strip()) for file, line in sorted(found))
    return [
        [strings.index(shown_file(file)), line, strings.index(text)]
        for file, line, text in quoted
        if text
    ]
