"""Count casts and bytes of three ways to mixed precision, with one measure.

``python -m bench.plans.casts_and_bytes [--nets unet bert ...] [--json FILE]``

For each net of ``models/`` and ``tests/nets/``: (a) ``torch.autocast`` with CUDA's op lists
(`autocast`), (b) a greedy painting after TensorFlow's grappler (`greedy`), (c) our plan and passes.
All three start from the same captured FP32 forward graph and give the same kind of object, the
recorded graph of ATen ops of forward and backward on fake CPU tensors. `measures` reads only this
graph, not the way it was made. Nothing is run and nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import fx

from bench.machine import describe as describe_machine
from bench.plans import greedy
from bench.plans.measures import Measures, measure
from bench.plans.ways import Gradient, by_autocast, by_plan, gradients, lint
from bench.root import ROOT
from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.pipeline import describe
from mpcompile.plan.footprint import footprints
from mpcompile.plan.planner import plan_of
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward
from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.marks import BACKWARD, SLOT
from mpcompile.program.workload import Workload, load
from mpcompile.step.differentiate import differentiate
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.graphs import copy_graph

sys.path.append(str(ROOT / "tests"))

from nets import NETS

WAYS = ("autocast", "autocast, shared", "greedy", "ours")
MODELS = ("resnet", "gpt", "lstm")


def workloads() -> dict[str, Callable[[], Workload]]:
    """Return every net by name, the three models first."""
    models = {name: partial(load, str(ROOT / "models" / f"{name}.py")) for name in MODELS}
    return {**models, **NETS}


def compare(workload: Workload) -> dict[str, Measures]:
    """Measure a net in each of `WAYS`; the workload is not changed."""
    makers = {"autocast": by_autocast, "greedy": by_painting, "ours": by_plan}
    made = gradients(workload, makers)
    made["autocast, shared"] = shared(made["autocast"])
    return {way: _measured(*made[way]) for way in WAYS}


def shared(made: Gradient) -> Gradient:
    """Return it with repeated casts shared, like common subexpressions in compiled code."""
    gradient, slots = copy_graph(made[0]), made[1]
    share_casts(gradient.graph)
    return gradient, slots


def by_painting(forward: Forward, trained: list[str]) -> Gradient:
    """Make the gradient graph by a greedy painting, with casts of one tensor shared."""
    flow = describe(forward, Policy())
    half = greedy.paint(flow)
    plan = plan_of(flow, footprints(flow), half, Precision.FP16)
    run_passes(forward.module, forward_passes(plan), lint)
    greedy.run_natively(forward.module, flow, half)
    gradient, slots = differentiate(forward, trained, "")
    share_casts(gradient.graph)
    return gradient, slots


def share_casts(graph: fx.Graph) -> None:
    """Drop casts that change nothing, and those that repeat an earlier one in the same half."""
    first: dict[tuple[object, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if not is_cast(node):
            continue
        source = source_of(node)
        key = (source, node.kwargs["dtype"], node in BACKWARD)
        if source.meta["val"].dtype is node.kwargs["dtype"]:
            node.replace_all_uses_with(source)
        elif first.setdefault(key, node) is not node:
            node.replace_all_uses_with(first[key])
    graph.eliminate_dead_code()


def _measured(gradient: fx.GraphModule, slots: dict[str, Slot]) -> Measures:
    parameters = frozenset(
        node.name
        for node in gradient.graph.find_nodes(op="placeholder")
        if slots[SLOT[node]].role in (Role.MASTER, Role.CONSTANT)
    )
    return measure(gradient.graph, parameters)


def table_of(found: dict[str, dict[str, Measures]]) -> Table:
    """Return one row per net and way, with bytes in kB."""
    table = Table(title="Ways to mixed precision; bytes in kB", title_justify="left")
    for column in ("net", "way"):
        table.add_column(column, no_wrap=True)
    for column in (
        "casts in\nforward", "of these\nwritten", "casts,\nboth", "casts of\nweights",
        "moved if\nnone fused", "written in\nforward",
        "saved for\nbackward", "/ auto-\ncast", "of it\nin FP32", "weights'\ncopies",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for net, ways in found.items():
        for way, m in ways.items():
            kilobytes = [f"{n / 1e3:,.0f}" for n in (m.cast_bytes, m.written, m.saved)]
            table.add_row(
                net if way == WAYS[0] else "",
                way,
                str(m.forward_casts),
                str(m.written_casts),
                str(m.casts),
                str(m.weight_casts),
                *kilobytes,
                f"{m.saved / ways['autocast'].saved:.3f}",
                f"{m.saved_wide / m.saved:.0%}",
                f"{m.weight_copies / 1e3:,.0f}",
                end_section=way == WAYS[-1],
            )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nets", nargs="+", choices=list(workloads()), default=list(workloads()))
    parser.add_argument("--size", default="small", choices=("small", "full"), help="of models/")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    os.environ["SIZE"] = options.size
    found = {name: compare(workloads()[name]()) for name in options.nets}
    machine = describe_machine("cpu")
    Console(width=max(150, Console().width)).print(table_of(found))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json:
        nets = {
            net: {way: asdict(measures) for way, measures in ways.items()}
            for net, ways in found.items()
        }
        options.json.write_text(json.dumps({"machine": machine, "nets": nets}, indent=1))


if __name__ == "__main__":
    main()
