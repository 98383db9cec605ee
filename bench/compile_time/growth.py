"""Measure how compile time and the overhead of a step grow with a net's depth and width.

``python -m bench.compile_time.growth [--depths 2 4 8 ...] [--widths 16 64 256] [--peers]``

Takes decoders of ``models/gpt.py`` with tiny tensors, each in a process of its own with empty
caches, and measures on the CPU: the seconds of `mpcompile.pipeline.transform` by stage (the least
of ``--runs`` after a warm-up on another net), those of inductor's compilation in BF16 (the first
call minus a later one; up to ``--compile-depth`` layers), and the seconds of a call of the step,
which for tensors this small are overhead: with FX code, with inductor's code, and `TrainStep` alone
around two graphs that do nothing. ``--peers`` compiles the same net with `torch.compile` under
autocast, forward and backward, to the end of the first step with a fused optimizer.

Prints a Markdown table per series. Its last row is the exponent of the growth: the slope over the
upper half of the sizes in log-log; 1 is linear. Draws both series into ``--output`` (default
``docs/growth.svg``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from statistics import linear_regression, median

import matplotlib as mpl
import torch

from bench.compile_time.capture import time_transform
from bench.machine import describe
from bench.root import ROOT
from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step, transform
from mpcompile.program.workload import Workload, module_at
from mpcompile.speed.peers import VARIANTS, stepper
from mpcompile.speed.side_by_side import run_process, said
from mpcompile.speed.timing import time_steps

DEPTHS = (2, 4, 8, 16, 32, 64, 96)
WIDTHS = (16, 64, 256)
LAYERS, WIDTH = 4, WIDTHS[0]
"""The fixed depth of the series of widths, and the fixed width of the series of depths."""
CALLS = 50

STAGES = {
    "capture": ("torch.export", "the rest of capture"),
    "plan": ("look at constants", "describe to the planner", "plan"),
    "differentiate, update": (
        "insert casts",
        "reshape matmuls",
        "passes before autograd",
        "differentiate",
        "gradient passes",
        "trace the update",
        "join the graphs",
        "training passes",
        "the rest",
    ),
}
"""Columns, and the stages of `bench/compile_time/capture.py` in their sums."""


@dataclass(frozen=True, slots=True)
class Column:
    """A measured quantity.

    Attributes:
        key: its key in a row.
        title: the heading of its column, with its unit.
        unit: seconds in one unit of the column.
    """

    key: str
    title: str
    unit: float = 1.0


COLUMNS = (
    *(Column(name, f"{name} s") for name in STAGES),
    Column("inductor", "inductor s"),
    Column("peer", "`torch.compile` s"),
    Column("lower", "lower, bind ms", 1e-3),
    Column("fx call", "call, FX code ms", 1e-3),
    Column("inductor call", "call, inductor ms", 1e-3),
    Column("own call", "`TrainStep` alone us", 1e-6),
)


def decoder(layers: int, width: int) -> Workload:
    """Return a decoder of `layers` layers on two sequences of eight tokens."""
    gpt = module_at(ROOT / "models" / "gpt.py")
    config = replace(gpt.SMALL, context=8, layers=layers, heads=2, width=width, batch=2)
    workload: Workload = gpt.workload(config=config, seed=0)
    return workload


def call_seconds(call: Callable[[], torch.Tensor]) -> float:
    """Return the median seconds of a call, after some calls that are not counted."""
    time_steps(call, 5, "cpu")
    return median(time_steps(call, CALLS, "cpu")[0]) / 1000


def measure_stages(layers: int, width: int, runs: int) -> dict[str, float]:
    """Return the seconds of each stage before lowering, and of calls with FX code."""
    time_transform(decoder(1, WIDTH))
    workload = decoder(layers, width)
    all_runs = [time_transform(workload) for _ in range(runs)]
    row = {
        column: min(sum(run[stage] for stage in stages) for run in all_runs)
        for column, stages in STAGES.items()
    }
    transformed = transform(workload)
    assert transformed.step is not None
    row["nodes"] = sum(
        len(graph.graph.nodes) for graph in (transformed.step.gradient, transformed.step.update)
    )
    begin = time.perf_counter()
    step = to_step(transformed, Lowering(backend="interpreter"))
    row["lower"] = time.perf_counter() - begin
    row["fx call"] = call_seconds(lambda: step(*workload.batch))
    lowered = step._lowered
    made = [
        torch.zeros_like(step.step.slots[name].empty(), device="cpu")
        for name in lowered.gradient_results
    ]
    step._lowered = replace(lowered, gradient=lambda *_: made, update=lambda *_: None)
    row["own call"] = call_seconds(lambda: step(*workload.batch))
    return row


def measure_first(variant: str, layers: int, width: int) -> tuple[float, float]:
    """Return how many seconds longer a variant's first step is, and the seconds of a later one."""
    made = stepper(decoder(layers, width), VARIANTS[variant], "cpu")
    begin = time.perf_counter()
    made.step()
    first = time.perf_counter() - begin
    later = call_seconds(made.step)
    return first - later, later


def measure_inductor(layers: int, width: int, runs: int) -> dict[str, float]:
    """Return the seconds of inductor's compilation in BF16, and of a call of its code."""
    del runs
    first, later = measure_first("ours", layers, width)
    return {"inductor": first, "inductor call": later}


def measure_peer(layers: int, width: int, runs: int) -> dict[str, float]:
    """Return the seconds that `torch.compile` takes for the same step under autocast."""
    del runs
    return {"peer": measure_first("compiled", layers, width)[0]}


KINDS: dict[str, Callable[[int, int, int], dict[str, float]]] = {
    "stages": measure_stages,
    "inductor": measure_inductor,
    "peer": measure_peer,
}


def measured(kind: str, layers: int, width: int, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own; return no numbers if it fails or takes too long."""
    numbers = [str(number) for number in (layers, width, options.runs)]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "bench.compile_time.growth", "--measure", kind, *numbers]
        row = run_process(command, Path(folder), kind, options.limit)
    what = f"{layers} layers, width {width}"
    if "error" in row:
        print(f"{kind}, {what}: {said(row['error'])}", file=sys.stderr, flush=True)
        return {}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
    print(f"{what}: {shown}", file=sys.stderr, flush=True)
    return row


def series(sizes: Sequence[tuple[int, int]], options: argparse.Namespace) -> list[dict[str, float]]:
    """Measure nets of these layers and widths."""
    rows = []
    for layers, width in sizes:
        row: dict[str, float] = {"layers": layers, "width": width}
        for kind in KINDS:
            wanted = kind == "stages" or layers <= options.compile_depth
            if wanted and (kind != "peer" or options.peers):
                row |= measured(kind, layers, width, options)
        rows.append(row)
    return rows


def exponent(rows: Sequence[dict[str, float]], size: str, key: str) -> float | None:
    """Return the slope over the upper half of the sizes in log-log; None for too few points."""
    points = [(log(row[size]), log(row[key])) for row in rows if row.get(key, 0) > 0]
    upper = points[len(points) // 2 :]
    return linear_regression(*zip(*upper, strict=True)).slope if len(upper) > 1 else None


def table(rows: Sequence[dict[str, float]], size: str) -> str:
    """Return a series as a Markdown table."""
    columns = [column for column in COLUMNS if any(column.key in row for row in rows)]
    both = any("peer" in row and "inductor" in row for row in rows)
    head = [size, "nodes", *(column.title for column in columns), *["ours / peer"] * both]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for row in rows:
        cells = [f"{row[size]:.0f}", f"{row['nodes']:.0f}" if "nodes" in row else "-"]
        cells += [_cell(row.get(column.key), column.unit) for column in columns]
        lines.append(f"| {' | '.join([*cells, *[_ratio(row)] * both])} |")
    slopes = [exponent(rows, size, column.key) for column in columns]
    cells = ["exponent", "", *("-" if slope is None else f"{slope:.2f}" for slope in slopes)]
    lines.append(f"| {' | '.join([*cells, *[''] * both])} |")
    return "\n".join(lines)


def _cell(seconds: float | None, unit: float) -> str:
    return "-" if seconds is None else f"{seconds / unit:.3g}"


def _ratio(row: dict[str, float]) -> str:
    """Return the ratio of our whole time until the end of the first step to torch's."""
    if not {"peer", "inductor", *STAGES} <= set(row):
        return "-"
    return f"{(row['inductor'] + sum(row[stage] for stage in STAGES)) / row['peer']:.2f}"


def plot(path: Path, drawn: dict[str, list[dict[str, float]]]) -> None:
    """Draw a panel of compile times and one of call times per series, both in log-log.

    Args:
        path: an SVG file.
        drawn: rows by the quantity that changes in them.
    """
    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 10})
    from matplotlib import pyplot as plt  # after the backend is selected

    kinds = {"compile": COLUMNS[:5], "call": COLUMNS[6:]}
    figure, panels = plt.subplots(
        len(kinds), len(drawn), figsize=(5.2 * len(drawn), 6.8), layout="constrained", squeeze=False
    )
    for line, (kind, columns) in zip(panels, kinds.items(), strict=True):
        for panel, (size, rows) in zip(line, drawn.items(), strict=True):
            for column in columns:
                points = [(row[size], row[column.key]) for row in rows if column.key in row]
                if points:
                    panel.plot(
                        *zip(*points, strict=True), marker="o", markersize=3, label=column.key
                    )
            panel.set(xscale="log", yscale="log", xlabel=size, ylabel=f"{kind}, s")
            sizes = [row[size] for row in rows]
            panel.set_xticks(sizes, [f"{value:.0f}" for value in sizes])
            panel.minorticks_off()
            panel.grid(color="#eeeeee")
            panel.spines[["top", "right"]].set_visible(False)
        line[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile-depth", type=int, default=32, help="0: compile nothing")
    parser.add_argument("--peers", action="store_true", help="torch.compile beside it (slow)")
    parser.add_argument("--limit", type=float, default=1200, help="seconds a process may take")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "growth.svg")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, *numbers = options.measure
        torch.set_num_threads(1)  # threads that wait for each other are not the overhead of a step
        print(json.dumps(KINDS[kind](*map(int, numbers))))
        return
    drawn = {"layers": series([(depth, WIDTH) for depth in options.depths], options)}
    if options.widths:
        drawn["width"] = series([(LAYERS, width) for width in options.widths], options)
    for size, rows in drawn.items():
        fixed = f"width {WIDTH}" if size == "layers" else f"{LAYERS} layers"
        print(f"\nGrowth with {size}, {fixed}:\n\n{table(rows, size)}")
    machine = describe("cpu")
    print(
        f"\n`{' '.join(['python -m bench.compile_time.growth', *sys.argv[1:]])}` on "
        f"{machine['date']}: {machine['device']}, {machine['cores']} cores, torch "
        f"{machine['torch']}, Python {machine['python']}, commit {machine['commit']}."
    )
    plot(options.output, drawn)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **drawn}, indent=1) + "\n")


if __name__ == "__main__":
    main()
