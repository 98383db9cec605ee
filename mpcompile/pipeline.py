"""The way of the data: load, capture, plan, insert casts, differentiate, passes, lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.control_flow import all_graphs
from mpcompile.dataflow import Dataflow
from mpcompile.differentiate import differentiate
from mpcompile.errors import BadInput
from mpcompile.loss_scale import LossScale
from mpcompile.lower_torch import Backend, default_backend
from mpcompile.pass_runner import run_passes
from mpcompile.passes import GRADIENT, forward_passes, training_passes
from mpcompile.plan import Plan
from mpcompile.planner import make_plan
from mpcompile.policy import Policy
from mpcompile.precision import Precision
from mpcompile.step import Role, Slot, StepGraph, add_input, results, set_results
from mpcompile.torch_graph import Forward, Kind, capture, dataflow
from mpcompile.torch_private import copy_graph, mutated_inputs, new_program
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
    loss_scale: LossScale | None = None,
    backend: Backend | None = None,
) -> TrainStep:
    """Compile a training step into mixed precision.

    Args:
        model: FP32, in the mode it shall train in. Its parameters become views of the step's
            arenas; their values and identity stay.
        loss: ``loss(model, *batch)`` returns a 0-d FP32 tensor.
        optimizer: any optimizer of ``torch.optim`` whose ``step()`` takes no closure.
        batch: example tensors; every later batch has their shapes and dtypes.
        policy: default: FP16 by the op table.
        loss_scale: default: dynamic from 2**16 with FP16, none otherwise.
        backend: default: ``"inductor"`` on CUDA, ``"interpreter"`` elsewhere.

    Raises:
        BadInput: an argument is wrong.
        CannotCapture: the program cannot become one graph.
    """
    return to_step(transform(Workload(model, batch, loss, optimizer), policy, loss_scale), backend)


def to_step(transformed: Transformed, backend: Backend | None = None) -> TrainStep:
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
    )


def transform(
    workload: Workload, policy: Policy | None = None, loss_scale: LossScale | None = None
) -> Transformed:
    """Run every stage before lowering; nothing of the user's is changed.

    Raises:
        BadInput, CannotCapture: see `compile`.
    """
    policy = policy or Policy()
    if loss_scale is None:
        half = policy.precision is Precision.FP16
        loss_scale = LossScale() if half else LossScale.none()
    forward = capture(workload)
    plan = make_plan(describe(forward, policy), policy.precision)
    changes = run_passes(forward.module, forward_passes(plan), _lint)
    for graph in all_graphs(forward.module):
        graph.recompile()
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
    program: torch.export.ExportedProgram, policy: Policy | None = None
) -> torch.export.ExportedProgram:
    """Rewrite an exported forward graph into mixed precision.

    Inputs, outputs and parameters keep their dtypes; the casts are nodes of the graph.

    Args:
        program: from `torch.export.export`; not changed.
        policy: default: FP16 by the op table.
    """
    policy = policy or Policy()
    if any(
        mutated_inputs(node)
        for graph in all_graphs(program.graph_module)
        for node in graph.graph.nodes
    ):
        program = program.run_decompositions({})  # makes it functional, decomposes nothing
    module = copy_graph(program.graph_module)
    signature = program.graph_signature
    fixed = dict.fromkeys(signature.inputs_to_parameters, "a parameter")
    fixed |= dict.fromkeys(signature.inputs_to_buffers, "a buffer")
    plan = make_plan(dataflow(module, fixed, policy), policy.precision)
    run_passes(module, forward_passes(plan), _lint)
    for graph in all_graphs(module):
        graph.recompile()
    return new_program(program, module)


def _lint(module: fx.GraphModule) -> None:
    for graph in all_graphs(module):
        graph.graph.lint()
