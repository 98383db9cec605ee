"""A histogram of exponents for a terminal, with a ruler of FP16's range."""

from __future__ import annotations

import math
from enum import Enum

from rich.text import Text

from mpcompile.numerics.gradient_exponents import TOP
from mpcompile.plan.ranges import NORMAL, SMALLEST, Range

_HEIGHT, _LEFT = 6, 10
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_STEPS = (1, 2, 5, 10)
"""Exponents per column; each divides the widths of both zones of FP16."""


class Zone(Enum):
    """A zone of FP16 magnitudes, as (meaning, character of the ruler, style)."""

    LOST = ("lost", "╌", "red")
    SUBNORMAL = ("fewer digits", "─", "yellow")
    NORMAL = ("all digits", "━", "green")
    ABOVE = ("overflow", "x", "red")


def zone_of(exponent: int) -> Zone:
    """Return the FP16 zone of the magnitudes with an exponent."""
    if exponent < SMALLEST:
        return Zone.LOST
    if exponent < NORMAL:
        return Zone.SUBNORMAL
    return Zone.NORMAL if exponent <= TOP else Zone.ABOVE


def columns_for(held: Range, scale: float, width: int) -> range:
    """Return the first exponent of each column, so that all numbers and both ranges fit.

    Args:
        held: all numbers to show.
        scale: a power of two; the range of numbers times it is shown too.
        width: most characters in a line.
    """
    shift = round(math.log2(scale))
    exponents = [exponent for exponent, _ in held.exponents]
    low = min([*exponents, SMALLEST - max(shift, 0)]) - 1
    high = max([*exponents, TOP - min(shift, 0)]) + 2
    room = max(width - _LEFT, 14) - 1
    step = next((step for step in _STEPS if (high - low) / step <= room), _STEPS[-1])
    return range(SMALLEST - math.ceil((SMALLEST - low) / step) * step, high + 1, step)


def exponent_plot(title: str, held: Range, scale: float, columns: range) -> list[Text]:
    """Return bars of the numbers per exponent, and below them a ruler of FP16's range.

    The range of numbers times a scale is lower by the scale's exponent. The bars have the colours
    of the range without a scale.

    Args:
        title: the line above.
        held: the numbers to show; zeros and numbers that are not finite are left out.
        scale: a power of two; if it is not 1, its range is drawn too.
        columns: see `columns_for`.
    """
    shift = round(math.log2(scale))
    counts = dict(held.exponents)
    bars = [sum(counts.get(e, 0) for e in range(c, c + columns.step)) for c in columns]
    most = max(bars)
    lines = [Text(title, style="bold")]
    for row in reversed(range(_HEIGHT if most else 0)):
        label = f"{most * (row + 1) / _HEIGHT / held.count:.1%}" if row % 2 else ""
        line = Text(f"{label:>{_LEFT - 1}} ", style="dim")
        for start, count in zip(columns, bars, strict=True):
            eighths = math.ceil(8 * _HEIGHT * count / most) - 8 * row  # even one number is visible
            line.append(_EIGHTHS[min(max(eighths, 0), 8)], style=zone_of(start).value[2])
        lines.append(line)
    lines += _window(columns, 0, "FP16")
    return lines + _window(columns, shift, f"x 2^{shift}") if shift else lines


def legend() -> Text:
    """Return a line that explains the characters of the rulers."""
    line = Text(" " * _LEFT)
    for zone in Zone:
        meaning, character, style = zone.value
        line.append(character, style=style).append(f" {meaning}  ", style="dim")
    return line


def _window(columns: range, shift: int, label: str) -> list[Text]:
    """Return a ruler with FP16's zones for numbers times ``2**shift``, and a line of its edges."""
    ruler = Text(f"{label:>{_LEFT - 1}} ", style="dim")
    for start in columns:
        _, character, style = zone_of(start + shift).value
        ruler.append(character, style=style)
    names = [" "] * len(columns)
    edges = {
        (edge - shift - columns.start) // columns.step: f"2^{edge - shift}"
        for edge in (SMALLEST, NORMAL, TOP)
    }
    for column in edges:
        if 0 <= column < len(names):
            names[column] = "|"
    for column, name in edges.items():
        for start in (column + 1, column - len(name)):  # right of its mark if there is room
            room = names[max(start, 0) : start + len(name)]
            if 0 <= column < len(names) and room == [" "] * len(name):
                names[start : start + len(name)] = name
                break
    return [ruler, Text(" " * _LEFT + "".join(names), style="dim")]
