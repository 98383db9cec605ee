"""Gradients travel in buckets while backward goes on."""

from __future__ import annotations

import pytest
import torch
from oracles.simulated_ranks import among, run_together
from programs.graphs import WORKLOADS, inputs_of, layered, run, step_of
from torch import fx

from mpcompile.passes.processes.reduce_in_backward import ReduceInBackward
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.collectives import is_collective
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.slots import Role
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name


def reduced(step: StepGraph, **options: object) -> int:
    hoist_weight_casts(step)
    return ReduceInBackward(among(2, **options))(step)  # type: ignore[arg-type]


def starts(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if op_name(node) == "all_reduce"]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_each_gradient_is_the_mean_over_the_processes(name: str, precision: str) -> None:
    step = step_of(WORKLOADS[name](), FULL_PRECISION)
    before = copy_graph(step.gradient)
    assert reduced(step, reduce=precision, bucket_bytes=200) >= 1
    given = [inputs_of(step, step.gradient.graph) for _ in range(2)]
    for place, node in enumerate(step.gradient.graph.find_nodes(op="placeholder")):
        if step.slots[node.meta["slot"]].role is Role.BATCH and given[0][place].is_floating_point():
            given[1][place] = given[1][place].flip(0)
    alone = [run(before, *values) for values in given]
    together = run_together(step.gradient.graph, given)
    for place, slot in enumerate(results(step.gradient.graph)):
        each = torch.stack([values[place] for values in alone])
        for rank, value in enumerate(made[place] for made in together):
            assert value.dtype is step.slots[slot].dtype
            if step.slots[slot].role is not Role.GRADIENT:
                assert torch.equal(value, each[rank])
            elif precision == "float32":
                assert torch.equal(value, each.mean(0))
            else:  # each half is rounded, and the sum
                bound = 2**-11 * (each.abs().mean(0) + each.mean(0).abs()) + 2**-23
                assert ((value.double() - each.mean(0)).abs() <= bound * 1.01).all()


def test_a_bucket_starts_right_behind_its_last_gradient_and_is_waited_for_at_the_end() -> None:
    step = step_of(layered())
    assert reduced(step, bucket_bytes=1) == len([s for s in step.slots if s.startswith("grad.")])
    order = list(step.gradient.graph.nodes)
    begun = starts(step.gradient.graph)
    waits = [node for node in order if op_name(node) == "wait_tensor"]
    assert max(map(order.index, begun)) < min(map(order.index, waits))
    assert [wait.args[0] for wait in waits] == begun
    between = order[order.index(begun[0]) : order.index(waits[0])]
    backward = [n for n in between if n.meta.get("backward")]
    assert any(op_name(node) == "mm" for node in backward), "nothing is left to overlap with"


@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
def test_buckets_fill_up_to_a_size(limit: int) -> None:
    step = step_of(layered())
    buckets = reduced(step, bucket_bytes=limit)
    sizes = [node.meta["val"].nbytes for node in starts(step.gradient.graph)]
    assert len(sizes) == buckets
    assert all(size >= limit for size in sizes[:-1])
    assert buckets == {1: 6, 100: 2, 1 << 20: 1}[limit]  # 24, 6, 6, 6, 18 and 3 weights


def test_they_start_in_the_same_order_whatever_the_shapes() -> None:
    def order(rows: int) -> list[tuple[int, ...]]:
        workload = layered()
        batch = torch.randn(rows, 4), torch.zeros(rows, dtype=torch.int64)
        step = step_of(type(workload)(workload.model, batch, workload.loss, workload.optimizer))
        reduced(step, bucket_bytes=64)
        return [tuple(node.meta["val"].shape) for node in starts(step.gradient.graph)]

    assert order(2) == order(7)


@pytest.mark.parametrize("options", [{"shard": True}, {"accumulate": 2}])
def test_it_leaves_to_the_update_what_is_not_reduced_with_each_backward(options: object) -> None:
    step = step_of(layered())
    assert reduced(step, **options) == 0  # type: ignore[arg-type]
    assert not any(map(is_collective, step.gradient.graph.nodes))


def test_a_second_run_does_nothing() -> None:
    step = step_of(layered())
    assert reduced(step) == 1
    text = str(step)
    assert ReduceInBackward(among(2))(step) == 0
    assert str(step) == text
