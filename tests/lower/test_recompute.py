"""What backward computes again: same numbers, fewer bytes kept, no random number drawn twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from programs.graphs import WORKLOADS, cross_entropy
from torch import fx, nn
from torch._functorch.partitioners import default_partition

import mpcompile
from bench.plans.ways import own_values
from bench.speed.variant import TINY, load
from mpcompile.lower import recompute
from mpcompile.lower.cut import Cut
from mpcompile.lower.recompute import Recomputing, cut
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.pipeline import transform
from mpcompile.plan.policy import Policy
from mpcompile.program.node_tensors import NARROW
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph
from mpcompile.step.liveness import result_bytes, saved_bytes
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import draws, is_view


class Dropped(nn.Module):
    """Dropout of a sum with a weight of the same shape: that weight's gradient is the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.shift = nn.Parameter(torch.rand(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = torch.relu(self.enter(x)) + self.shift
        return nn.functional.dropout(shifted, 0.5)


def dropped(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(x).float().sum()
    return result


def dropout() -> Workload:
    torch.manual_seed(0)
    model = Dropped()
    return Workload(model, (torch.randn(32, 8),), dropped, torch.optim.SGD(model.parameters()))


class Filled(nn.Module):
    """A number put into a tensor is a constant of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(x) * 1.0
        hidden[:, 0] = 0.5
        result: torch.Tensor = self.leave(hidden)
        return result


def filled() -> Workload:
    torch.manual_seed(0)
    model = Filled()
    batch = (torch.randn(2, 4), torch.tensor([0, 2]))
    return Workload(model, batch, cross_entropy, torch.optim.SGD(model.parameters()))


def tiny(name: str) -> Callable[[], Workload]:
    return lambda: load(name, "tiny", "cpu")


PROGRAMS = {**WORKLOADS, "filled": filled, **{name: tiny(name) for name in TINY}}


def step_of(workload: Workload, policy: Policy | None = None) -> tuple[StepGraph, list[Any]]:
    """Return the step and the gradient graph's inputs, the model's own values."""
    made = transform(workload, Choices(policy=policy or Policy()))
    assert made.step is not None
    return made.step, own_values(made, scale=2.0**10)


def kept(made: Cut) -> list[fx.Node]:
    """Return the nodes that forward keeps for backward, but for inputs."""
    results: Any = made.forward.graph.output_node().args[0]
    return [node for node in results[made.results :] if node.op != "placeholder"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_computing_again_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, inputs = step_of(PROGRAMS[name]())
    once = Recomputing(step.gradient, step.slots, run_as_traced=True)
    torch.manual_seed(7)  # for dropout
    results = once(*inputs)

    def save_all(joint: fx.GraphModule, count: int, *_: Any) -> Any:
        return default_partition(joint, None, num_fwd_outputs=count)

    monkeypatch.setattr(recompute, "min_cut", save_all)
    plain = Recomputing(step.gradient, step.slots, run_as_traced=True)
    torch.manual_seed(7)
    for value, expected in zip(results, plain(*inputs), strict=True):
        assert torch.equal(value, expected)
    assert once.cut is not None
    assert plain.cut is not None
    assert once.cut.saved_bytes < plain.cut.saved_bytes


@pytest.mark.parametrize("name", ["linear", "tied", "layered", "attention", "matrices", "filled"])
def test_the_halves_compute_what_the_graph_computes(name: str) -> None:
    step, inputs = step_of(PROGRAMS[name]())
    halves = Recomputing(step.gradient, step.slots, run_as_traced=True)(*inputs)
    whole = copy_graph(step.gradient)(*inputs)
    names = step.gradient.graph.output_node().meta["slots"]
    for slot, value, expected in zip(names, halves, whole, strict=True):
        assert value.dtype is expected.dtype
        assert value.shape == expected.shape
        # A decomposed layer norm or softmax rounds differently: two units of FP16.
        worst = 2**-9 * float(expected.abs().max())
        torch.testing.assert_close(value, expected, rtol=2**-9, atol=worst, msg=slot)


@pytest.mark.parametrize("name", PROGRAMS)
def test_fewer_bytes_are_kept(name: str) -> None:
    step, _ = step_of(PROGRAMS[name]())
    made = cut(step.gradient, step.slots)
    assert 0 < made.saved_bytes <= saved_bytes(step.gradient.graph)
    assert made.saved_bytes == result_bytes(made.forward.graph, made.results)


@pytest.mark.parametrize("name", ["layered", "tied", "gpt", "resnet"])
def test_a_widened_copy_is_made_again(name: str) -> None:
    step, _ = step_of(PROGRAMS[name]())
    made = cut(step.gradient, step.slots)
    for node in kept(made):
        whole = node
        while is_view(whole):
            whole = whole.all_input_nodes[0]
        sources = [item.meta["val"] for item in whole.all_input_nodes]
        is_cast = "convert_element_type" in str(whole.target)
        assert not (is_cast and sources[0].dtype in NARROW and sources[0].dim()), node
    inputs = made.backward.graph.find_nodes(op="placeholder")
    again = [
        user
        for node in inputs
        for user in node.users
        if "convert_element_type" in str(user.target)
        if node.meta["val"].dtype in NARROW and user.meta["val"].dtype is torch.float32
    ]
    assert again


def check_mask(results: list[torch.Tensor], step: StepGraph, inputs: list[Any]) -> None:
    """The loss must be that of the mask that the gradient shows."""
    made = dict(zip(step.gradient.graph.output_node().meta["slots"], results, strict=True))
    given: dict[str, torch.Tensor] = {}
    for node, value in zip(step.gradient.graph.find_nodes(op="placeholder"), inputs, strict=True):
        slot = step.slots[node.meta["slot"]]
        name = "x" if slot.role is Role.BATCH else slot.name.removesuffix(".working")
        given[name] = value.float()
    mask = made["grad.shift"].float() / given.get(SCALE, torch.ones(()))
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    hidden = nn.functional.linear(given["x"], given["enter.weight"], given["enter.bias"])
    expected = (mask * (torch.relu(hidden) + given["shift"])).sum()
    torch.testing.assert_close(made["loss"], expected, rtol=2**-9, atol=0.0)


@pytest.mark.parametrize("budget", [1.0, 0.5, 0.01])
@pytest.mark.parametrize("policy", [Policy(), mpcompile.FULL_PRECISION], ids=["fp16", "fp32"])
def test_a_dropout_mask_is_never_drawn_again(policy: Policy, budget: float) -> None:
    step, inputs = step_of(dropout(), policy)
    halves = Recomputing(step.gradient, step.slots, budget, run_as_traced=True)
    torch.manual_seed(7)
    results = halves(*inputs)
    check_mask(results, step, inputs)
    assert halves.cut is not None
    graph = halves.cut.backward.graph
    assert not any(draws(node) for node in graph.nodes if node.op == "call_function")
    assert not any("inductor_" in str(node.target) for node in graph.nodes)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(results, halves(*inputs), strict=True))


def test_a_compiled_dropout_mask_is_one_and_reproduces() -> None:
    step, inputs = step_of(dropout())
    halves = Recomputing(step.gradient, step.slots)
    torch.manual_seed(7)
    results = halves(*inputs)
    check_mask(results, step, inputs)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(results, halves(*inputs), strict=True))


def test_a_smaller_budget_keeps_less_and_computes_the_same() -> None:
    step, inputs = step_of(PROGRAMS["gpt"]())
    sizes, gradients = [], []
    for budget in (1.0, 0.5, 0.1):
        halves = Recomputing(step.gradient, step.slots, budget, run_as_traced=True)
        gradients.append(halves(*inputs))
        assert halves.cut is not None
        sizes.append(halves.cut.saved_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, math.nan])
def test_an_impossible_budget_is_refused(budget: float) -> None:
    w = PROGRAMS["linear"]()
    assert w.loss is not None
    assert w.optimizer is not None
    with pytest.raises(mpcompile.BadInput, match="memory_budget is"):
        mpcompile.compile(w.model, w.loss, w.optimizer, w.batch, memory_budget=budget)
