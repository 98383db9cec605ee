"""The update's numbers, computed apart, leave the update what it was."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import WORKLOADS, inputs_of, run
from torch import fx

from mpcompile.lower.lower import write_in_place
from mpcompile.lower.update_numbers import split_numbers
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.graphs import copy_graph


def updates(workload: Workload) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """Return the update as inductor's backend sees it, and random inputs."""
    step = transform(workload, Choices(loss_scale=LossScale())).step
    assert step is not None
    update = copy_graph(step.update)
    numbers_to_tensors(update)
    write_in_place(step, update)
    return update, inputs_of(step, update.graph)


@pytest.mark.parametrize("name", WORKLOADS)
def test_both_parts_do_what_the_update_does(name: str) -> None:
    update, inputs = updates(WORKLOADS[name]())
    first, rest = split_numbers(update)
    expected = [value.clone() for value in inputs]
    run(update, *expected)
    named = dict(
        zip([node.name for node in update.graph.find_nodes(op="placeholder")], inputs, strict=True)
    )
    read = [named[node.name] for node in first.graph.find_nodes(op="placeholder")]
    numbers = run(first, *read)
    assert numbers
    memory = {value.untyped_storage().data_ptr() for value in inputs}
    assert memory.isdisjoint(value.untyped_storage().data_ptr() for value in numbers)
    run(rest, *inputs, *numbers)
    for value, after in zip(inputs, expected, strict=True):
        assert torch.equal(value, after)


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_fp64_is_computed_where_weights_are(name: str) -> None:
    _, rest = split_numbers(updates(WORKLOADS[name]())[0])
    doubles = {
        node
        for node in rest.graph.nodes
        if node.op == "call_function" and node.meta["val"].dtype is torch.float64
    }
    # What is left is the next loss scale, which nothing of a weight's size reads.
    assert all(node.meta["val"].dim() == 0 for node in doubles)
    assert all(user.meta["val"].dim() == 0 for node in doubles for user in node.users)


def test_numbers_are_only_numbers() -> None:
    first, _ = split_numbers(updates(WORKLOADS["tied"]())[0])
    assert all(
        node.meta["val"].dim() == 0 for node in first.graph.nodes if node.op == "call_function"
    )
    names = {str(node.target) for node in first.graph.nodes}
    assert {"aten.pow.Tensor_Tensor", "aten.reciprocal.default"} <= names
