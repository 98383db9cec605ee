"""The histogram of gradient exponents as a picture, by matplotlib."""

from __future__ import annotations

import io
import math
from typing import Any

from mpcompile.numerics.gradient_exponents import TOP
from mpcompile.plan.ranges import NORMAL, SMALLEST, Range

_COLORS = {"activations": "#0072b2", "weights": "#e69f00"}


def exponent_figure(title: str, held: dict[str, Range], scale: float | None, kind: str) -> bytes:
    """Return a picture of the share of numbers per exponent, with FP16's range shaded.

    Args:
        title: above the picture; no markup.
        held: the ranges to show, by ``activations`` and ``weights``.
        scale: a loss scale, to show its range too, or None.
        kind: ``svg`` or ``png``.
    """
    # Of this function only: it is no dependency, and slow to load.
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    looks: Any = {"svg.fonttype": "none", "svg.hashsalt": "exponents", "text.parse_math": False}
    with mpl.rc_context(looks):
        figure = Figure(figsize=(8, 4), layout="constrained")
        panel = figure.subplots()
        panel.axvspan(SMALLEST, NORMAL, color="#f0e442", alpha=0.3, label="FP16, subnormal")
        panel.axvspan(NORMAL, TOP + 1, color="#009e73", alpha=0.15, label="FP16, normal")
        if scale is not None:
            names = {SMALLEST: f"FP16 at a loss scale of {scale:g}", TOP + 1: None}
            for edge, name in names.items():
                position = edge - math.log2(scale)
                panel.axvline(position, color="#555555", linestyle=":", label=name)
        for number, (name, found) in enumerate(held.items()):
            positions = [exponent + 0.05 + 0.45 * number for exponent, _ in found.exponents]
            shares = [count / found.count for _, count in found.exponents]
            label = f"by {name}"
            panel.bar(positions, shares, 0.45, align="edge", color=_COLORS[name], label=label)
        panel.set(xlabel="log2 of the magnitude", ylabel="share of the numbers", title=title)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
        made = io.BytesIO()
        figure.savefig(made, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return made.getvalue()
