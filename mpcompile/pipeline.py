"""The way of the data: load, capture, plan, insert casts, differentiate, passes, lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.apply_plan import decide
from mpcompile.dataflow import Dataflow
from mpcompile.differentiate import differentiate
from mpcompile.errors import BadInput
from mpcompile.loss_scale import LossScale
from mpcompile.lower_torch import Backend, default_backend
from mpcompile.pass_runner import run_passes
from mpcompile.passes import GRADIENT, forward_passes, training_passes
from mpcompile.plan import Plan
from mpcompile.policy import Policy
from mpcompile.precision import Precision
from mpcompile.step import Role, Slot, StepGraph, add_input, results, set_results
from mpcompile.torch_graph import Forward, Kind, capture, dataflow
from mpcompile.torch_private import copy_graph, new_program, rename
from mpcompile.train_step import TrainStep
from mpcompile.update import Update, trace_update, trained_parameters
from mpcompile.workload import Workload


@dataclass(frozen=True)
class Transformed:
    """Everything before lowering.

    Attributes:
        workload: what came in.
        policy: what it was transformed by.
        scale: the loss scale's rule.
        forward: the forward graph, casts inserted.
        plan: the decisions.
        step: the step graph; None for a workload without a loss.
        initial: per arena the optimizer state before the first step.
        changes: per pass how many changes it made.
    """

    workload: Workload
    policy: Policy
    scale: LossScale
    forward: Forward
    plan: Plan
    step: StepGraph | None
    initial: dict[str, dict[str, torch.Tensor]]
    changes: dict[str, int]


def compile(
    model: torch.nn.Module,
    loss: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, ...],
    *,
    policy: Policy | None = None,
    plan: Plan | None = None,
    loss_scale: LossScale | None = None,
    backend: Backend | None = None,
    memory_budget: float = 1.0,
) -> TrainStep:
    """Compile a training step into mixed precision.

    Args:
        model: FP32, in the mode it shall train in. Its parameters become views of the step's
            arenas; their values and identity stay.
        loss: ``loss(model, *batch)`` returns a 0-d FP32 tensor.
        optimizer: any optimizer of ``torch.optim`` whose ``step()`` takes no closure.
        batch: example tensors; every later batch has their shapes and dtypes.
        policy: default: FP16 by the op table.
        plan: decisions that hold before the policy, such as ``Plan.from_json(text)`` of a file
            that was edited; it must be of this very program and batch shape.
        loss_scale: default: dynamic from 2**16 with FP16, none otherwise.
        backend: default: ``"inductor"`` on CUDA, ``"interpreter"`` elsewhere.
        memory_budget: with inductor, the part of the activations that backward may keep, in
            (0, 1]; at 1 only what is cheap is computed again, below also what is not.

    Raises:
        BadInput: an argument is wrong.
        CannotCapture: the program cannot become one graph.
    """
    workload = Workload(model, batch, loss, optimizer)
    return to_step(transform(workload, policy, loss_scale, plan), backend, memory_budget)


def to_step(
    transformed: Transformed, backend: Backend | None = None, memory_budget: float = 1.0
) -> TrainStep:
    """Lower a transformed workload and bind its state; raises BadInput if it has no loss."""
    t = transformed
    if t.step is None:
        raise BadInput(
            "the workload has no loss and no optimizer", t.workload.origin, "add both to train it"
        )
    device = next(iter(t.workload.model.parameters())).device
    return TrainStep(
        t.workload,
        t.forward,
        t.plan,
        t.step,
        t.initial,
        t.scale,
        backend or default_backend(device),
        memory_budget,
    )


def transform(
    workload: Workload,
    policy: Policy | None = None,
    loss_scale: LossScale | None = None,
    plan: Plan | None = None,
) -> Transformed:
    """Run every stage before lowering; nothing of the user's is changed.

    Raises:
        BadInput, CannotCapture: see `compile`.
    """
    policy = policy or Policy()
    if loss_scale is None:
        precision = plan.precision if plan else policy.precision
        loss_scale = LossScale() if precision is Precision.FP16 else LossScale.none()
    forward = capture(workload)
    plan = decide(describe(forward, policy), policy.precision, plan)
    changes = run_passes(forward.module, forward_passes(plan), _lint)
    forward.module.recompile()
    if workload.optimizer is None:
        return Transformed(workload, policy, loss_scale, forward, plan, None, {}, changes)
    named = {id(i.tensor): i.name for i in forward.inputs if i.kind is Kind.PARAMETER}
    groups = trained_parameters(workload.optimizer, named, workload.origin)
    trained = [name for group in groups for name in group]
    gradient, slots = differentiate(forward, trained, workload.origin)
    for name, count in run_passes(gradient, GRADIENT, _lint).items():
        changes[name] = changes.get(name, 0) + count
    shapes = {item.name: tuple(item.tensor.shape) for item in forward.inputs}
    device = next(iter(workload.model.parameters())).device
    update = trace_update(workload.optimizer, groups, shapes, device, workload.origin)
    step = join(gradient, slots, update)
    changes |= run_passes(step, training_passes(loss_scale), StepGraph.check)
    return Transformed(workload, policy, loss_scale, forward, plan, step, update.initial, changes)


def describe(forward: Forward, policy: Policy) -> Dataflow:
    """Describe a captured forward graph to the planner."""
    fixed = {item.node: f"a {item.kind.value}" for item in forward.inputs}
    return dataflow(forward.module, fixed, policy)


def join(gradient: fx.GraphModule, slots: dict[str, Slot], update: Update) -> StepGraph:
    """Put gradient graph and update graph together; updated buffers become results."""
    step = StepGraph(gradient, update.module, {**slots, **update.slots}, update.arenas)
    graph = update.module.graph
    values = results(graph)
    like = next(iter(graph.find_nodes(op="placeholder")))
    for slot in slots.values():
        if slot.role is Role.UPDATED:
            node = add_input(graph, slot, like)
            values[slot.name.removeprefix("next.")] = node
    set_results(graph, values)
    return step


def rewrite(
    program: torch.export.ExportedProgram,
    policy: Policy | None = None,
    plan: Plan | None = None,
) -> torch.export.ExportedProgram:
    """Rewrite an exported forward graph into mixed precision.

    Inputs, outputs and parameters keep their dtypes; the casts are nodes of the graph.

    Args:
        program: from `torch.export.export`; not changed.
        policy: default: FP16 by the op table.
        plan: decisions that hold before the policy; it must be of this very program.

    Raises:
        BadInput: the plan is of another graph, or overrides of the policy contradict each other.
    """
    policy = policy or Policy()
    module = copy_graph(program.graph_module)
    signature = program.graph_signature
    fixed = dict.fromkeys(signature.inputs_to_parameters, "a parameter")
    fixed |= dict.fromkeys(signature.inputs_to_buffers, "a buffer")
    plan = decide(dataflow(module, fixed, policy), policy.precision, plan)
    outputs = [node.name for node in _outputs(module.graph)]
    run_passes(module, forward_passes(plan), _lint)
    _keep_names(module.graph, outputs)
    module.recompile()
    return new_program(program, module)


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    values: list[fx.Node] = []
    fx.map_arg(graph.output_node().args, values.append)
    return values


def _keep_names(graph: fx.Graph, names: list[str]) -> None:
    """Let the outputs keep their names, which the program's signature knows them by."""
    nodes = {node.name: node for node in graph.nodes}
    for node, name in zip(_outputs(graph), names, strict=True):
        if node.name != name:
            if name in nodes:
                rename(nodes[name], f"{name}_inner")
            node.name = name


def _lint(module: Any) -> None:
    module.graph.lint()
