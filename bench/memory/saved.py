"""Measure the bytes kept from forward to backward: ours and autocast's, before and after the cut.

``python -m bench.memory.saved [--models gpt ...] [--size full] [--budgets 1 0.5]
[--without PASS ...] [--peak]``

Both ways start from the same FP32 forward graph. Each gradient graph goes through inductor's
decompositions and joint passes, then through torch's min cut: autocast's as in `torch.compile`,
ours as in `mpcompile.lower.recompute`. *Traced* bytes are those that the recorded ops of backward
read. The *estimate* is the peak of all live tensors if ops run one after the other. 16-bit copies
of weights are counted apart: autocast keeps them from forward to backward, ours are state. Seconds
are those of tracing and of the cut within it. Nothing is compiled or run on values.

``--peak`` also compiles forward and backward three ways, in bfloat16 for the CPU: `torch.compile`
under autocast, ours as one graph for inference, ours as halves. It prints the peak of allocated
bytes in a run, and the 10th percentile of the milliseconds of 100 runs, which take turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx
from torch.profiler import ProfilerActivity, profile

from bench.machine import describe as describe_machine
from bench.plans.ways import by_autocast, gradients, own_values
from bench.speed.pair import turn_by_turn
from bench.speed.variant import TINY, load
from mpcompile.lower.cut import Cut
from mpcompile.lower.recompute import Recomputing, cut
from mpcompile.passes.order import OPTIONAL
from mpcompile.pipeline import transform
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.step.liveness import peak, saved_bytes, tensor_bytes
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.inductor import compiled
from mpcompile.torch_private.ops import is_view

WAYS = ("torch.compile", "one graph", "halves")


def kept_bytes(made: Cut) -> tuple[int, int]:
    """Return the bytes that a cut keeps, without copies of inputs, and those of the copies."""
    results: Any = made.forward.graph.output_node().args[0]
    copies = {node for node in results[made.results :] if is_copy_of_input(node)}
    size = sum(tensor_bytes(node.meta["val"]) for node in copies)
    return made.saved_bytes - size, size


def is_copy_of_input(node: fx.Node) -> bool:
    """Return whether a node is an input in another dtype, perhaps viewed in another shape."""
    whole = node
    while is_view(whole) or "convert_element_type" in str(whole.target):
        whole = whole.all_input_nodes[0]
    return whole.op == "placeholder" and node.op != "placeholder" and node is not whole


def traced(
    workload: Workload, budgets: Sequence[float], without: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the figures of both ways, ours without some passes; keep the workload unchanged."""
    found = {}
    made = transform(workload, Choices(without=without))
    assert made.step is not None
    ways = gradients(workload, {"autocast": by_autocast})
    ways["ours"] = made.step.gradient, made.step.slots
    for way, (gradient, slots) in ways.items():
        cuts: dict[float, dict[str, Any]] = {}
        found[way] = {
            "traced": saved_bytes(gradient.graph),
            "estimate": peak(gradient.graph).bytes,
            "cuts": cuts,
        }
        for budget in budgets:
            begin = time.perf_counter()
            after = cut(gradient, slots, budget)
            kept, copies = kept_bytes(after)
            cuts[budget] = {
                "kept": kept,
                "weight_copies": copies,
                "seconds": time.perf_counter() - begin,
                "cut_seconds": after.seconds,
            }
    return found


def three_ways(make: Callable[[], Workload]) -> dict[str, Callable[[], Any]]:
    """Return forward and backward of a model in three ways."""
    workload = make()
    loss, parameters = workload.loss, list(workload.model.parameters())
    assert loss is not None
    peer = torch.compile(loss)

    def run_peer() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = peer(workload.model, *workload.batch)
        torch.autograd.grad(value, parameters)

    made = transform(make(), Choices(policy=Policy(precision=Precision.BF16)))
    assert made.step is not None
    inputs = own_values(made)
    [(_, whole)] = compiled(copy_graph(made.step.gradient), inputs)
    halves = Recomputing(made.step.gradient, made.step.slots)
    return {
        "torch.compile": run_peer,
        "one graph": torch.no_grad()(lambda: whole(list(inputs))),
        "halves": lambda: halves(*inputs),
    }


def peak_of(run: Callable[[], Any]) -> int:
    """Return the most bytes allocated at once by a function that has run before."""
    run()
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        seen.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    alive = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=_time):
        alive += event["args"]["Bytes"]
        most = max(most, alive)
    return most


def _time(event: dict[str, Any]) -> float:
    return float(event["ts"])


def mebibytes(count: int) -> str:
    """Return bytes as text in MiB."""
    return f"{count / 2**20:,.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=list(TINY), choices=TINY)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0])
    parser.add_argument("--without", nargs="+", default=[], choices=OPTIONAL)
    parser.add_argument("--peak", action="store_true")
    options = parser.parse_args()
    console = Console(width=110)
    console.print(describe_machine("cpu"))
    columns = ("traced", "estimate", "budget", "kept", "weight copies", "trace + cut s", "cut s")
    table = Table(
        "model", "way", *columns, title=f"MiB between forward and backward, {options.size}"
    )
    for model in options.models:
        for way, figures in traced(
            load(model, options.size, "cpu"), options.budgets, options.without
        ).items():
            for budget, row in figures["cuts"].items():
                table.add_row(
                    model,
                    way,
                    mebibytes(figures["traced"]),
                    mebibytes(figures["estimate"]),
                    f"{budget:g}",
                    mebibytes(row["kept"]),
                    mebibytes(row["weight_copies"]),
                    f"{row['seconds']:.2f}",
                    f"{row['cut_seconds']:.2f}",
                )
    console.print(table)
    if options.peak:
        table = Table("model", "", *WAYS, title="forward and backward, bfloat16")
        for model in options.models:
            runs = three_ways(lambda model=model: load(model, options.size, "cpu"))  # type: ignore[misc]
            table.add_row(model, "peak MiB", *(mebibytes(peak_of(runs[way])) for way in WAYS))
            times = turn_by_turn(runs, 100)
            lows = (quantiles(times[way], n=10)[0] for way in WAYS)
            table.add_row(model, "p10 ms", *(f"{low:.3f}" for low in lows))
        console.print(table)


if __name__ == "__main__":
    main()
