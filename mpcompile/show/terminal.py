"""Tables of a view for a terminal. Names in them come from a model and are never markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from mpcompile.errors import from_here, printable
from mpcompile.plan.dataflow import Where
from mpcompile.show.summary import bytes_text, numbers_table
from mpcompile.show.tables import (
    CastRow,
    casts_of,
    columns_of,
    largest_of,
    ops_by_precision,
    peak_of,
    saved_of,
)
from mpcompile.show.view import PRECISIONS, STAGES, View, ViewNode

_STYLES = {"f16": "green", "bf16": "green", "f32": "blue", "both": "yellow", "other": "dim"}
_HEIGHT, _LEFT = 6, 10
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def headline(view: View, nodes: Sequence[ViewNode]) -> Text:
    """Return one line: the kind of the view, and the number of its ops in each precision."""
    counts: Counter[str] = Counter(node.precision for node in nodes if node.role == "op")
    kinds = {"program": "a program", "onnx": "an ONNX model", "plan": "a plan"}
    parts = (f"{counts[name]:,} {name}" for name in PRECISIONS if counts[name])
    line = f"{view.source}: {kinds[view.kind]}, {view.precision}; {counts.total():,} ops: "
    return Text(printable(f"{line}{', '.join(parts)}"), style="bold")


def ops_tables(nodes: Sequence[ViewNode], limit: int) -> list[Table]:
    """Return one table per stage: each op, with its number in each precision."""
    tables = []
    found = ops_by_precision(nodes)
    columns = [
        name
        for name in PRECISIONS
        if any(row[name] for counts in found.values() for row in counts.values())
    ]
    for stage, counts in found.items():
        total = {name: sum(row[name] for row in counts.values()) for name in columns}
        table = numbers_table(f"{stage}: {sum(total.values()):,} ops", "op")
        for name in columns:
            table.add_column(name, justify="right", style=_STYLES[name])
        for op, row in list(counts.items())[:limit]:
            table.add_row(text_of(op), *(_count(row[name]) for name in columns))
        rest = list(counts.values())[limit:]
        if rest:
            sums = (_count(sum(row[name] for row in rest)) for name in columns)
            table.add_row(Text(f"{len(rest)} more (--all)", style="dim"), *sums)
        if len(counts) > 1:
            table.add_section()
            table.add_row("all", *(_count(total[name]) for name in columns))
        tables.append(table)
    return tables


def casts_table(view: View, nodes: Sequence[ViewNode], limit: int) -> Table | None:
    """Return the cast map: each cast with its edge, its bytes and its reason."""
    rows = casts_of(view, nodes)
    if not rows:
        return None
    moved = bytes_text(sum(row.bytes for row in rows))
    table = _table(
        f"casts: {_shown(rows, limit)}, {moved} if none is fused", "of", "read by", "to", "bytes"
    )
    table.add_column("why", overflow="fold")
    table.columns[3].justify = "right"
    for row in rows[:limit]:
        table.add_row(
            text_of(row.tensor),
            text_of(_readers(row)),
            Text(row.to, style=_STYLES.get(row.to, "")),
            bytes_text(row.bytes),
            text_of(row.reason),
        )
    return table


def saved_table(nodes: Sequence[ViewNode], limit: int) -> Table | None:
    """Return the table of tensors that forward keeps for backward."""
    rows = saved_of(nodes)
    if not rows:
        return None
    total = bytes_text(sum(node.bytes for node in rows))
    title = f"saved for backward: {_shown(rows, limit)}, {total}"
    table = _table(title, "tensor", "op", "type", "bytes", "where")
    table.columns[3].justify = "right"
    for node in rows[:limit]:
        table.add_row(
            text_of(node.id),
            text_of(node.op),
            Text(node.type, style=_STYLES.get(node.stored, "")),
            bytes_text(node.bytes),
            where_of(node.where),
        )
    return table


def largest_table(view: View, nodes: Sequence[ViewNode], limit: int) -> Table | None:
    """Return the nodes that read and write most bytes, for a view without a program."""
    rows = largest_of(view, nodes)
    if not rows:
        return None
    title = f"most bytes read and written, if nothing is fused: {_shown(rows, limit)}"
    table = _table(title, "node", "op", "type", "bytes", "where")
    table.columns[3].justify = "right"
    for node, moved in rows[:limit]:
        table.add_row(
            text_of(node.id),
            text_of(node.op),
            Text(node.type, style=_STYLES[node.precision]),
            bytes_text(moved),
            where_of(node.where),
        )
    return table


def nodes_table(nodes: Sequence[ViewNode], limit: int) -> Table:
    """Return all nodes one by one, in the order in which they run."""
    table = _table(f"nodes: {_shown(nodes, limit)}", "node", "op", "precision", "type", "where")
    table.add_column("why", overflow="fold")
    for node in nodes[:limit]:
        table.add_row(
            text_of(node.id),
            text_of(node.op),
            Text(node.precision, style=_STYLES[node.precision]),
            node.type,
            where_of(node.where),
            text_of(node.reason),
        )
    return table


def memory_plot(view: View, width: int) -> list[Text]:
    """Return the bytes alive over the step as lines of a plot; none if they are unknown.

    Args:
        view: the whole view.
        width: most characters in a line.
    """
    peak = peak_of(view)
    if peak is None:
        return []
    columns = columns_of(view, max(width - _LEFT, 8))
    title = f"memory over the step, estimated: at most {bytes_text(peak.alive)} at {peak.id}"
    lines = [Text(printable(title), style="bold", no_wrap=True, overflow="ellipsis")]
    for row in reversed(range(_HEIGHT)):
        label = bytes_text(peak.alive * (row + 1) / _HEIGHT) if row % 2 else ""
        line = Text(f"{label:>{_LEFT - 1}} ", style="dim")
        for alive, stage in columns:
            level = alive / peak.alive * _HEIGHT - row
            filled = _EIGHTHS[round(8 * min(max(level, 0), 1))]
            line.append(filled, style=("cyan", "magenta", "white")[STAGES.index(stage)])
        lines.append(line)
    lines.append(Text(" " * _LEFT + _stage_names(columns), style="dim"))
    return lines


def _stage_names(columns: Sequence[tuple[int, str]]) -> str:
    text = ""
    for index, (_, stage) in enumerate(columns):
        if index == 0 or columns[index - 1][1] != stage:
            text = text.ljust(index) if len(text) <= index else text + " "
            text += stage
    return text[: len(columns)]


def text_of(name: str) -> Text:
    """Return a text from a model without markup, its control characters written out."""
    return Text(printable(name))


def where_of(where: Where) -> Text:
    """Return a source position, its file relative to the working folder."""
    return text_of(from_here(str(where)))


def _readers(row: CastRow) -> str:
    more = f" and {len(row.readers) - 2} more" if len(row.readers) > 2 else ""
    return f"{', '.join(row.readers[:2])}{more}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _shown(rows: Sequence[object], limit: int) -> str:
    return f"{limit} of {len(rows):,} (--all)" if len(rows) > limit else f"{len(rows):,}"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""
