"""Small graphs for tests: a function becomes a graph, a workload a step before its passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from mpcompile.passes.order import GRADIENT, forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.pipeline import describe
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Policy
from mpcompile.program.capture import Forward, InputKind, capture
from mpcompile.program.workload import Workload
from mpcompile.step.differentiate import differentiate
from mpcompile.step.graph import StepGraph
from mpcompile.step.record import record
from mpcompile.step.trained import trained_parameters
from mpcompile.step.update import trace_update
from mpcompile.step.update_of_program import join, weights_cast
from mpcompile.torch_private.graphs import copy_graph, rename
from mpcompile.torch_private.tensors import fake_mode


def graph_of(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], **inputs: torch.Tensor
) -> fx.GraphModule:
    """Record a function of named tensors as a graph of ATen ops."""
    mode = fake_mode()

    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = function(*values)
        return results if isinstance(results, tuple) else (results,)

    module = record(
        flat, [mode.from_tensor(value, static_shapes=True) for value in inputs.values()], mode
    )
    for node, name in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
        rename(node, name)
    return module


def run(module: fx.GraphModule, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a graph unchanged."""
    results = copy_graph(module)(*inputs)
    return tuple(results) if isinstance(results, list | tuple) else (results,)


class Tied(nn.Module):
    """An embedding tied to the head, with a layer norm and a softmax gate between them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.words(x))
        hidden = hidden * torch.softmax(self.gate(hidden), dim=-1)
        return nn.functional.linear(hidden, self.words.weight)


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def linear() -> Workload:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    batch = (torch.randn(2, 4), torch.tensor([0, 2]))
    return Workload(model, batch, cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))


def tied() -> Workload:
    torch.manual_seed(0)
    model = Tied()
    batch = (torch.randint(0, 10, (6,)), torch.randint(0, 10, (6,)))
    return Workload(model, batch, cross_entropy, torch.optim.AdamW(model.parameters(), lr=0.1))


def convolution() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    batch = (torch.randn(2, 3, 5, 5), torch.tensor([0, 2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Workload(model, batch, cross_entropy, optimizer)


def layered() -> Workload:
    """Two linears with a layer norm between them, in two parameter groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))
    batch = (torch.randn(2, 4), torch.tensor([0, 2]))
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": model[1:].parameters()},
    ]
    return Workload(model, batch, cross_entropy, torch.optim.Adam(groups, lr=0.1))


class Attention(nn.Module):
    """One linear computes query, key and value, which are slices of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 24)
        self.leave = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.view(2, 5, 2, 4).transpose(1, 2) for part in self.enter(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: torch.Tensor = self.leave(mixed.transpose(1, 2).reshape(10, 8))
        return result


def attention() -> Workload:
    torch.manual_seed(0)
    model = Attention()
    batch = (torch.randn(2, 5, 8), torch.randint(0, 3, (10,)))
    return Workload(model, batch, cross_entropy, torch.optim.NAdam(model.parameters(), lr=0.1))


def matrices() -> Workload:
    """An optimizer that is not elementwise: each weight keeps its shape in an arena of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    batch = (torch.randn(2, 4), torch.tensor([0, 2]))
    return Workload(model, batch, cross_entropy, torch.optim.Muon(model.parameters(), lr=0.1))


def partly_frozen() -> Workload:
    """Only the last weight is trained; the first is read in 16 bits, the norm's are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))
    model[:2].requires_grad_(False)
    batch = (torch.randn(2, 4), torch.tensor([0, 2]))
    return Workload(model, batch, cross_entropy, torch.optim.SGD(model[2].parameters(), lr=0.1))


WORKLOADS = {
    "linear": linear,
    "tied": tied,
    "convolution": convolution,
    "layered": layered,
    "attention": attention,
    "matrices": matrices,
    "partly frozen": partly_frozen,
}


def forward_of(workload: Workload, policy: Policy | None = None) -> Forward:
    """Capture and insert casts."""
    policy = policy or Policy()
    forward = capture(workload)
    plan = make_plan(describe(forward, policy), policy.precision)
    run_passes(forward.module, forward_passes(plan), lambda module: module.graph.lint())
    return forward


def raw_step_of(workload: Workload, policy: Policy | None = None, ranks: int = 1) -> StepGraph:
    """Return the step graph as made by autograd, before any pass on the gradient graph."""
    assert workload.optimizer is not None
    forward = forward_of(workload, policy)
    named = {id(i.tensor): i.name for i in forward.inputs if i.kind is InputKind.PARAMETER}
    groups = trained_parameters(workload.optimizer, named, "")
    trained = [name for group in groups for name in group]
    gradient, slots = differentiate(forward, trained, "")
    shapes = {item.name: tuple(item.tensor.shape) for item in forward.inputs}
    cast = weights_cast(forward)
    update = trace_update(workload.optimizer, groups, cast, shapes, torch.device("cpu"), "", ranks)
    return join(gradient, slots, update)


def step_of(workload: Workload, policy: Policy | None = None, ranks: int = 1) -> StepGraph:
    """Return the step graph before its training passes."""
    step = raw_step_of(workload, policy, ranks)
    run_passes(step.gradient, GRADIENT, lambda module: module.graph.lint())
    return step


def inputs_of(step: StepGraph, graph: fx.Graph, **given: torch.Tensor) -> list[torch.Tensor]:
    """Return reproducible random inputs for one of a step's graphs, some of them given by slot."""
    values = []
    for node in graph.find_nodes(op="placeholder"):
        slot = step.slots[node.meta["slot"]]
        generator = torch.Generator().manual_seed(sum(map(ord, slot.name)))
        if slot.name in given:
            values.append(given[slot.name])
        elif slot.dtype.is_floating_point:
            values.append(torch.rand(slot.shape, generator=generator).to(slot.dtype))
        else:
            values.append(torch.randint(0, 3, slot.shape, generator=generator).to(slot.dtype))
    return values
