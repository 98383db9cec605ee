"""Measure how the time of a plan grows with the graph.

``python -m bench.compile_time.planner [--ops 1000 3000 10000 30000] [--runs 5]
[--beside FOLDER]``

Prints, for decoders of each size, the processor seconds of the bounds of all tensors, of building
the network, of the minimum cut, and of the whole plan, which comes after the bounds: the least of
several runs. Then the growth beside that of ``n log n``.
With ``--beside FOLDER`` another checkout of this repository plans graphs of the same sizes, turn by
turn, each in a process of its own; least, median and greatest of five turns are printed.
Python's garbage collector skips the objects from before (torch has a million objects).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.root import ROOT
from mpcompile.plan.bounds.bound import Step
from mpcompile.plan.bounds.walk import bounds_of
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.footprint import footprints
from mpcompile.plan.min_cut import source_side
from mpcompile.plan.planner import FULL_SIDE, HALF_SIDE, make_plan, network_of
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision

_NAMES = {"norm": "layer_norm", "scale": "mul", "mask": "masked_fill"}
TURNS = 5
WIDTH = 1 << 20
"""Numbers in one activation: 1,024 tokens of 1,024 channels."""


class Writer:
    """Collects the rows of a graph."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = [Tensor("x", WIDTH, fixed=Fixed.INPUT)]

    def parameter(self, elements: int) -> str:
        """Add a parameter."""
        self.tensors.append(Tensor(f"p{len(self.tensors)}", elements, fixed=Fixed.PARAMETER))
        return self.tensors[-1].id

    def op(self, kind: str, *reads: str, elements: int = WIDTH, keeps: str = "") -> str:
        """Add an op with one result; return the result."""
        name = f"o{len(self.ops)}"
        wish = {"matmul": Wish.HALF, "exp": Wish.FULL, "loss": Wish.FULL}.get(kind, Wish.FREE)
        self.tensors.append(Tensor(f"t{name}", elements, output=kind == "loss"))
        result = self.tensors[-1].id
        self.ops.append(
            Op(
                id=name,
                kind=kind,
                rule=kind,
                wish=wish,
                inside=kind in ("norm", "softmax", "exp", "loss"),
                streams=kind != "matmul",
                reason="",
                reads=reads,
                writes=(result,),
                keeps={"in": reads, "out": (result,), "": ()}[keeps],
                view=kind == "view",
            )
        )
        return result


def decoder(ops: int) -> Dataflow:
    """Return a decoder of about `ops` ops; some blocks have an FP32 gate."""
    graph = Writer()
    x = "x"
    while len(graph.ops) < ops - 1:
        normed = graph.op("norm", x, graph.parameter(1 << 10), keeps="in")
        joined = graph.op("matmul", normed, graph.parameter(3 << 20), elements=3 * WIDTH)
        q, k, v = (graph.op("view", graph.op("view", joined)) for _ in range(3))
        scores = graph.op("matmul", q, k, elements=4 * WIDTH, keeps="in")
        scores = graph.op("mask", graph.op("scale", scores, elements=4 * WIDTH), elements=4 * WIDTH)
        chances = graph.op("softmax", scores, elements=4 * WIDTH, keeps="out")
        chances = graph.op("dropout", chances, elements=4 * WIDTH)
        mixed = graph.op("view", graph.op("matmul", chances, v, keeps="in"))
        x = graph.op("add", x, graph.op("matmul", mixed, graph.parameter(1 << 20), keeps="in"))
        normed = graph.op("norm", x, graph.parameter(1 << 10), keeps="in")
        hidden = graph.op("matmul", normed, graph.parameter(4 << 20), elements=4 * WIDTH)
        hidden = graph.op("gelu", hidden, elements=4 * WIDTH, keeps="in")
        if len(graph.ops) % 7 == 0:
            gate = graph.op("exp", hidden, elements=4 * WIDTH, keeps="out")
            hidden = graph.op("mul", hidden, gate, elements=4 * WIDTH, keeps="in")
        hidden = graph.op("matmul", hidden, graph.parameter(4 << 20), keeps="in")
        x = graph.op("add", x, graph.op("dropout", hidden))
    graph.op("loss", x, elements=1, keeps="in")
    return Dataflow(tuple(graph.ops), tuple(graph.tensors))


def steps(flow: Dataflow) -> Iterator[Step]:
    """Yield the rows of a graph for the analysis of bounds."""
    for tensor in flow.tensors:
        if tensor.fixed is not None:
            yield Step("weight" if tensor.fixed is Fixed.PARAMETER else "unknown", (), tensor.id)
    for op in flow.ops:
        yield Step(_NAMES.get(op.kind, op.kind), (*op.reads, 0.5), op.writes[0], 1 << 10)


def _bound(flow: Dataflow) -> None:
    bounds_of(steps(flow), Precision.FP16)


def seconds(function: Callable[[], Any], runs: int) -> float:
    """Return the least processor time of several runs."""
    least = math.inf
    for _ in range(runs):
        begin = time.process_time()
        function()
        least = min(least, time.process_time() - begin)
    return least


def beside(folders: Sequence[Path], ops: Sequence[int]) -> Iterator[str]:
    """Yield lines with the time of bounds and plan of several checkouts, turn by turn."""
    found: dict[tuple[int, Path], list[float]] = {}
    for _ in range(TURNS):
        for folder in folders:
            for row in _rows_of(folder, ops):
                took = row.get("bounds", 0.0) + row["plan"]  # early checkouts had no bounds
                found.setdefault((int(row["ops"]), folder), []).append(took)
    for (count, folder), times in sorted(found.items()):
        least, median, greatest = min(times), statistics.median(times), max(times)
        yield f"{count:7} {least:8.3f} {median:8.3f} {greatest:8.3f}  {folder.name}"


def _rows_of(folder: Path, ops: Sequence[int]) -> list[dict[str, float]]:
    """Run the benchmark of a checkout; return its rows."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "rows.json"
        options = ["--ops", *map(str, ops), "--runs", "1", "--json", str(path)]
        subprocess.run(
            [sys.executable, "-m", "bench.compile_time.planner", *options],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows: list[dict[str, float]] = json.loads(path.read_text())["rows"]
        return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ops", type=int, nargs="+", default=[100, 1_000, 3_000, 10_000, 30_000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--beside", type=Path, help="another checkout of this repository")
    options = parser.parse_args()
    if options.beside:
        print("    ops  least s median s   most s  checkout (bounds and plan)")
        for line in beside([ROOT, options.beside.resolve()], options.ops):
            print(line)
        return
    rows: list[dict[str, float]] = []
    gc.freeze()
    print("    ops   bounds s  network s    cut s   plan s  plan / (n log n), first = 1")
    for ops in options.ops:
        flow = decoder(ops)
        network = network_of(flow, footprints(flow))
        row = {
            "ops": len(flow.ops),
            "bounds": seconds(partial(_bound, flow), options.runs),
            "network": seconds(lambda flow=flow: network_of(flow, footprints(flow)), options.runs),  # type: ignore[misc]
            "cut": seconds(
                lambda network=network: source_side(network, HALF_SIDE, FULL_SIDE),  # type: ignore[misc]
                options.runs,
            ),
            "plan": seconds(lambda flow=flow: make_plan(flow, Precision.FP16), options.runs),  # type: ignore[misc]
        }
        row["growth"] = row["plan"] / (row["ops"] * math.log(row["ops"]))
        rows.append(row)
        print(
            f"{row['ops']:7} {row['bounds']:10.3f} {row['network']:10.3f} {row['cut']:8.3f} "
            f"{row['plan']:8.3f} "
            f"{row['growth'] / rows[0]['growth']:28.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": describe("cpu"), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
