"""Simulate the processes of a step: run one graph for all of them, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from mpcompile.precision import Precision
from mpcompile.step.collectives import is_collective
from mpcompile.step.loop import Loop
from mpcompile.step.processes import DataParallel
from mpcompile.torch_private.ops import op_name


def among(ranks: int, *, accumulate: int = 1, clip: float | None = None, **options: Any) -> Loop:
    """Return the loop options of a step on `ranks` processes."""
    options["reduce"] = Precision(options.get("reduce", "float32"))
    parallel = DataParallel(ranks, 0, lambda: SimpleNamespace(group_name="all"), **options)
    return Loop(clip, None, accumulate, parallel)


def run_together(
    graph: fx.Graph, inputs: Sequence[Sequence[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    """Run a graph on the inputs of each process; return the results of each."""
    known: list[dict[fx.Node, Any]] = [{} for _ in inputs]
    given = [iter(values) for values in inputs]
    for node in graph.nodes:
        if node.op == "placeholder":
            for values, own in zip(given, known, strict=True):
                own[node] = next(values)
        elif node.op == "output":
            return [list(fx.map_arg(node.args[0], own.__getitem__)) for own in known]
        elif is_collective(node):
            read = [own[node.args[0]] for own in known]
            for own, value in zip(known, _exchanged(op_name(node), read), strict=True):
                own[node] = value
        else:
            for own in known:
                args: Any = fx.map_arg((node.args, dict(node.kwargs)), own.__getitem__)
                own[node] = node.target(*args[0], **args[1])
    raise AssertionError("a graph without output")


def _exchanged(op: str, values: list[torch.Tensor]) -> list[torch.Tensor]:
    if op == "wait_tensor":
        return values
    if op == "all_gather_into_tensor":
        return [torch.cat(values)] * len(values)
    total = torch.stack(values).sum(0, dtype=values[0].dtype)
    if op == "reduce_scatter_tensor":
        return list(total.chunk(len(values)))
    assert op == "all_reduce"
    return [total] * len(values)
