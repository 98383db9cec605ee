"""The part that is found is the smallest, checked by brute force on small graphs."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import pytest
import torch
from planted.failing_parts import PLANTED, epsilon, moment_of, reduced_of
from programs.graphs import graph_of
from torch import fx, nn

from mpcompile import Workload
from mpcompile.errors import CannotCapture
from mpcompile.lower.lower import Lowering
from mpcompile.numerics.lockstep import Moment, lockstep, moment
from mpcompile.numerics.node_errors import relative_error
from mpcompile.pipeline import to_step, transform
from mpcompile.program.random_state import random_state
from mpcompile.search.reduce import reduce
from mpcompile.search.subgraph import (
    Captured,
    capture_values,
    inputs_of,
    maker,
    makers,
    obstacle,
    outcome,
)
from mpcompile.step.graph import StepGraph
from mpcompile.torch_private.ops import op_name

_SMALL = ("attention", "epsilon", "overflowing", "underflow")


def fails(captured: Captured, ops: frozenset[fx.Node], infinite: bool, tolerance: float) -> bool:
    inputs = inputs_of(captured.target, ops)
    made = outcome(captured, {node.name: captured.values[node.name] for node in inputs})
    assert made is not None
    return made.nonfinite > 0 if infinite else made.fails(tolerance)


def ancestors(captured: Captured) -> set[fx.Node]:
    end = maker(captured.target)
    assert end is not None
    found, waiting = {end}, [end]
    while waiting:
        fresh = [item for item in makers(waiting.pop()) if item not in found]
        found.update(fresh)
        waiting += fresh
    return found


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_no_op_can_be_left_out(name: str) -> None:
    case = PLANTED[name]
    reduced = reduced_of(case)
    assert tuple(map(op_name, reduced.ops)) == case.ops
    assert reduced.outcome.fails(case.tolerance)
    infinite = reduced.outcome.nonfinite > 0
    end = maker(reduced.captured.target)
    assert fails(reduced.captured, frozenset(reduced.ops), infinite, case.tolerance)
    for op in reduced.ops:
        if op is not end:
            left = frozenset(reduced.ops) - {op}
            assert not fails(reduced.captured, left, infinite, case.tolerance)


@pytest.mark.parametrize("name", _SMALL)
def test_no_smaller_set_of_ops_fails_at_all(name: str) -> None:
    case = PLANTED[name]
    reduced = reduced_of(case)
    captured, end = reduced.captured, maker(reduced.captured.target)
    assert end is not None
    others = sorted(ancestors(captured) - {end})
    sizes = range(len(reduced.ops) - 1)
    for some in chain.from_iterable(combinations(others, size) for size in sizes):
        ops = frozenset([*some, end])
        assert not fails(captured, ops, reduced.outcome.nonfinite > 0, case.tolerance)


@pytest.mark.parametrize("name", PLANTED)
def test_captured_values_are_those_of_the_step_bit_by_bit(name: str) -> None:
    now, target = moment_of(PLANTED[name])
    captured = capture_values(now, target)
    compared = 0
    for seen in lockstep(now):
        value = captured.values.get(seen.node.name)
        if value is not None and value.dtype is seen.ours.dtype:
            torch.testing.assert_close(value, seen.ours, rtol=0, atol=0, equal_nan=True)
            compared += 1
    assert compared > 2


def test_a_weight_that_does_not_fit_fails_in_its_cast() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    nn.init.constant_(model.weight, 1e5)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(x).square().mean()
        return result

    batch = (torch.randn(4, 8),)
    made = Workload(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    now = moment(to_step(transform(made), Lowering(backend="interpreter")), *batch)
    name = next(n.name for n in now.step.gradient.graph.nodes if "weight" in n.name)
    reduced = reduce(now, name, 0.25)
    assert [op_name(op) for op in reduced.ops] == ["_to_copy"]
    (source,) = reduced.inputs.values()
    assert source.value.dtype is torch.float32


def test_a_dropout_multiplies_by_the_mask_that_was_drawn() -> None:
    x = torch.randn(64).half()

    def drop(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten.native_dropout(x * 3, 0.3, True)[0] + 1
        return result

    module = graph_of(drop, x=x)
    (enters,) = module.graph.find_nodes(op="placeholder")
    enters.meta["slot"] = "x"
    now = Moment(StepGraph(module, module, {}, ()), {"x": x}, {}, random_state(x.device))
    seen = {item.node.name: item.ours for item in lockstep(now)}
    name = next(n.name for n in module.graph.nodes if op_name(n) == "add")
    captured = capture_values(now, name)
    torch.testing.assert_close(captured.values[name], seen[name], rtol=0, atol=0)
    assert (captured.values[name] == 1).any()
    search = [node for node in ancestors(captured) if not obstacle(node)]
    assert sorted(map(op_name, search)) == ["add", "mul", "mul", "mul"]
    inputs = inputs_of(captured.target, search)
    made = outcome(captured, {node.name: captured.values[node.name] for node in inputs})
    assert made is not None
    again = made.ours[captured.rounded[name]]
    torch.testing.assert_close(again, seen[name], rtol=0, atol=0)


def test_a_division_by_vanished_numbers_is_the_failing_node() -> None:
    def all_zeros() -> Workload:
        made = epsilon()
        return replace(made, batch=(torch.zeros_like(made.batch[0]), made.batch[1]))

    case = replace(PLANTED["epsilon"], workload=all_zeros)
    now, name = moment_of(case)
    errors = {item.node.name: (item.ours, item.exact) for item in lockstep(now)}
    assert relative_error(*errors["add"]) == 1  # it comes first, and harms nobody by itself
    assert name == "div"
    assert [op_name(op) for op in reduce(now, name, 0.25).ops] == ["add", "div"]


def test_a_node_that_does_not_fail_cannot_be_reduced() -> None:
    now, _ = moment_of(PLANTED["epsilon"])
    name = next(n.name for n in now.step.gradient.graph.nodes if op_name(n) == "relu")
    with pytest.raises(CannotCapture, match="cannot contain the inputs with which it fails"):
        reduce(now, name, 0.25)


def test_an_op_that_draws_random_numbers_cannot_be_reduced() -> None:
    x = torch.full((8,), 0.5)
    module = graph_of(lambda x: torch.ops.aten.bernoulli.default(x * 0.5), x=x)
    (enters,) = module.graph.find_nodes(op="placeholder")
    enters.meta["slot"] = "x"
    now = Moment(StepGraph(module, module, {}, ()), {"x": x}, {}, random_state(x.device))
    with pytest.raises(CannotCapture, match="bernoulli draws random numbers"):
        reduce(now, "bernoulli", 0.25)
