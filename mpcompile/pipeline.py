"""The way of the data: load, capture, plan, insert casts, differentiate, passes, lower."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, did_you_mean
from mpcompile.lower.lower import Backend, default_backend
from mpcompile.passes.forward.clean_casts import is_cast
from mpcompile.passes.order import (
    BEFORE_AUTOGRAD,
    GRADIENT,
    OPTIONAL,
    forward_passes,
    matmul_passes,
    training_passes,
)
from mpcompile.passes.runner import run_passes
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.given import decide, for_other_shapes
from mpcompile.plan.measured import MeasuredOverflow, overruled
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Level, Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.batch_size import open_places
from mpcompile.program.capture import Forward, Kind, capture
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.describe import dataflow
from mpcompile.program.graph_text import graph_text
from mpcompile.program.marks import MADE_BY
from mpcompile.program.module_modes import in_modes, modes_of
from mpcompile.program.open_capture import capture_open, check_open
from mpcompile.program.unfit_constants import UnfitConstant, unfit_constants, unfit_reasons
from mpcompile.program.workload import Workload
from mpcompile.step.arena import Place
from mpcompile.step.differentiate import differentiate
from mpcompile.step.graph import StepGraph, add_inputs, results, set_results
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.processes import DataParallel
from mpcompile.step.slots import Role, Slot
from mpcompile.step.update import Update, trace_update, trained_parameters
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.tracing import trace_artifact
from mpcompile.train.same_start import check_same_step, spread
from mpcompile.train.train_step import TrainStep


@dataclass(frozen=True)
class Transformed:
    """Everything before lowering.

    Attributes:
        workload: what came in.
        policy: what it was transformed by.
        scale: the loss scale's rule.
        forward: the forward graph, casts inserted.
        flow: the forward graph as the planner saw it.
        plan: the decisions.
        step: the step graph; None for a workload without a loss.
        initial: per arena the optimizer state before the first step.
        changes: per pass how many changes it made.
        unfit: constants of the program that the 16-bit format cannot hold.
        loop: what was asked for between backward and the optimizer.
        without: names of the passes left out.
    """

    workload: Workload
    policy: Policy
    scale: LossScale
    forward: Forward
    flow: Dataflow
    plan: Plan
    step: StepGraph | None
    initial: dict[str, dict[str, torch.Tensor]]
    changes: dict[str, int]
    unfit: tuple[UnfitConstant, ...]
    loop: Loop = PLAIN
    without: tuple[str, ...] = ()


def compile(
    model: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, ...],
    *,
    policy: Policy | None = None,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    loss_scale: LossScale | None = None,
    max_grad_norm: float | None = None,
    max_grad_value: float | None = None,
    accumulate: int = 1,
    parallel: DataParallel | None = None,
    backend: Backend | None = None,
    memory_budget: float = 1.0,
    cuda_graph: bool = True,
    options: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    dynamic: bool = False,
) -> TrainStep:
    """Compile a training step into mixed precision.

    Args:
        model: FP32, in the mode it shall train in. Its parameters become views of the step's
            arenas; their values and identity stay.
        loss: ``loss(model, *batch)`` returns a 0-d FP32 tensor, or ``(loss, anything)``.
        optimizer: any optimizer of ``torch.optim`` whose ``step()`` takes no closure.
        batch: example tensors; a later batch of other shapes is one more graph.
        policy: default: FP16 by the op table.
        plan: decisions that hold before the policy, such as ``Plan.from_json(text)`` of a file
            that was edited; it must be of this very program and batch shape.
        ranges: what `calibrate` measured on this very program and batch shape.
        loss_scale: default: dynamic from 2**16 with FP16, none otherwise.
        max_grad_norm: clip the unscaled gradients as ``torch.nn.utils.clip_grad_norm_`` does.
        max_grad_value: clip them as ``torch.nn.utils.clip_grad_value_`` does; one of the two.
        accumulate: calls of the step an update, which reads the FP32 mean of their gradients.
        parallel: share the step with other processes, see `mpcompile.data_parallel`.
        backend: default: ``"inductor"`` on CUDA, ``"interpreter"`` elsewhere.
        memory_budget: with inductor, the part of the activations that backward may keep, in
            (0, 1]; at 1 only what is cheap is computed again, below also what is not.
        cuda_graph: with inductor on CUDA, replay the whole step as one CUDA graph after three plain
            steps. A step that cannot be captured runs plainly, said once in the log ``mpcompile``.
        options: of inductor, as for ``torch.compile(options=...)``: ``{"max_autotune": True}``.
        without: names of passes to leave out, of `mpcompile.passes.order.OPTIONAL`.
        dynamic: one graph for batches of every size from 2 on: dimension 0 of the tensors that are
            as long there as the first becomes a symbol. Decisions are those of the example.

    Raises:
        BadInput: an argument is wrong.
        CannotCapture: the program cannot become one graph, or not one for every size.
    """
    workload = Workload(model, batch, loss, optimizer)
    loop = Loop(max_grad_norm, max_grad_value, accumulate, parallel)
    transformed = transform(
        workload, policy, loss_scale, plan, ranges, without, loop, dynamic=dynamic
    )
    return to_step(transformed, backend, memory_budget, cuda_graph, options)


def to_step(
    transformed: Transformed,
    backend: Backend | None = None,
    memory_budget: float = 1.0,
    cuda_graph: bool = True,
    options: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Lower a transformed workload and bind its state; raises BadInput if it has no loss."""
    t = transformed
    if t.step is None:
        raise BadInput(
            "the workload has no loss and no optimizer", t.workload.origin, "add both to train it"
        )
    device = next(iter(t.workload.model.parameters())).device
    modes = modes_of(t.workload.model)

    def for_batch(
        batch: tuple[torch.Tensor, ...], places: tuple[bool, ...]
    ) -> tuple[Forward, StepGraph]:
        workload = replace(t.workload, batch=batch)
        ways: dict[str, Any] = {"without": t.without, "loop": t.loop, "dynamic": places}
        with in_modes(modes):
            made = transform(workload, t.policy, t.scale, like=t.plan, **ways)
        assert made.step is not None
        return made.forward, made.step

    parallel = t.loop.parallel
    if parallel is not None:
        assert t.workload.optimizer is not None
        check_same_step(t.step, t.scale, t.workload.optimizer, parallel)
        spread(t.workload.model, t.workload.optimizer, parallel)
    return TrainStep(
        t.workload,
        t.forward,
        t.plan,
        t.step,
        t.initial,
        t.scale,
        backend or default_backend(device),
        memory_budget,
        cuda_graph,
        options,
        t.loop.accumulate,
        replace(t.policy, precision=t.plan.precision),
        for_batch,
        parallel,
    )


def transform(
    workload: Workload,
    policy: Policy | None = None,
    loss_scale: LossScale | None = None,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    without: Collection[str] = (),
    loop: Loop = PLAIN,
    like: Plan | None = None,
    dynamic: bool | tuple[bool, ...] = False,
) -> Transformed:
    """Run every stage before lowering; nothing of the user's is changed.

    With ``like``, the plan of the same program with another batch shape, it decides as that does.
    ``dynamic`` may say per tensor of the batch whether it has the size that is left open.
    Warns with `MeasuredOverflow` of each tensor that the user wants in FP16 though it was measured
    to be too large for it.

    Raises:
        BadInput, CannotCapture: see `compile`.
    """
    _check_passes(without)
    policy = policy or Policy()
    precision = plan.precision if plan else policy.precision
    if loss_scale is None:
        loss_scale = LossScale() if precision is Precision.FP16 else LossScale.none()
    if ranges is not None:
        _check_release(policy, ranges)
    places = open_places(workload.batch) if dynamic is True else dynamic
    forward = capture_open(workload, places) if places else capture(workload)
    # What is transformed in FP32 is there to compare with.
    trace = (lambda *_: None) if precision is Precision.FP32 else trace_artifact
    trace("mpcompile_before", lambda: graph_text(forward.module.graph))
    unfit = unfit_constants(forward.module, constants_of(forward), precision)
    flow = describe(forward, policy, unfit)
    if like is not None:
        plan = for_other_shapes(like, flow)
    plan = decide(flow, policy.precision, plan, ranges)
    trace("mpcompile_decisions.json", plan.to_json)
    for sentence in overruled(plan, ranges) if ranges is not None else ():
        warnings.warn(sentence, MeasuredOverflow, stacklevel=2)
    changes = run_passes(forward.module, forward_passes(plan), _lint)
    for graph in all_graphs(forward.module):
        graph.recompile()
    trace("mpcompile_after", lambda: graph_text(forward.module.graph))
    if workload.optimizer is None:
        return Transformed(
            workload, policy, loss_scale, forward, flow, plan, None, {}, changes, unfit
        )
    trained, update = update_of(workload, workload.optimizer, forward, loop.parallel)
    # The user is shown the graph of composite ops; autograd gets a copy.
    prepared = replace(forward, module=copy_graph(forward.module))
    passes = matmul_passes(places_of(forward, update), without)
    changes |= run_passes(prepared.module, passes, _lint, _mark_module)
    changes |= run_passes(prepared.module, BEFORE_AUTOGRAD, _lint)
    gradient, slots = differentiate(prepared, trained, workload.origin)
    for name, count in run_passes(gradient, GRADIENT, _lint, _mark_module).items():
        changes[name] = changes.get(name, 0) + count
    step = join(gradient, slots, update)
    changes |= run_passes(step, training_passes(loss_scale, loop), StepGraph.check, _mark_step)
    check_open(forward, workload)
    trace("mpcompile_step", lambda: str(step))
    return Transformed(
        workload,
        policy,
        loss_scale,
        forward,
        flow,
        plan,
        step,
        update.initial,
        changes,
        unfit,
        loop,
        tuple(without),
    )


def describe(forward: Forward, policy: Policy, unfit: tuple[UnfitConstant, ...] = ()) -> Dataflow:
    """Describe a captured forward graph to the planner."""
    fixed = {item.node: f"a {item.kind.value}" for item in forward.inputs}
    return dataflow(forward.module, fixed, policy, unfit_reasons(forward.module, unfit))


def update_of(
    workload: Workload,
    optimizer: torch.optim.Optimizer,
    forward: Forward,
    parallel: DataParallel | None = None,
) -> tuple[list[str], Update]:
    """Trace the optimizer's step for a forward graph in which casts stand.

    Returns:
        The names of the trained parameters, and the update.
    """
    named = {id(i.tensor): i.name for i in forward.inputs if i.kind is Kind.PARAMETER}
    groups = trained_parameters(optimizer, named, workload.origin)
    shapes = {item.name: tuple(item.tensor.shape) for item in forward.inputs}
    device = next(iter(workload.model.parameters())).device
    ranks = parallel.ranks if parallel is not None and parallel.shard else 1
    cast = weights_cast(forward, alone=ranks > 1)
    update = trace_update(optimizer, groups, cast, shapes, device, workload.origin, ranks)
    if ranks > 1 and not all(arena.flat for arena in update.arenas):
        raise BadInput(
            f"{type(optimizer).__name__} looks at a whole weight at a time, so its state cannot be "
            "cut into slices",
            workload.origin,
            "leave out shard=True, or use an optimizer that works element by element",
        )
    return [name for group in groups for name in group], update


def weights_cast(forward: Forward, *, alone: bool = False) -> set[str]:
    """Return the names of the parameters that will have a working copy if they are trained.

    With ``alone``, only those that nothing reads in FP32, whose masters can be in slices: not a
    weight without dimensions, which could not show that it is (`mpcompile.step.slices.is_absent`).
    """
    every = all if alone else any
    nodes = {node.name: node for node in forward.module.graph.find_nodes(op="placeholder")}
    return {
        item.name
        for item in forward.inputs
        if every(map(is_cast, nodes[item.node].users)) and not (alone and item.tensor.dim() == 0)
    }


def _check_passes(without: Collection[str]) -> None:
    for name in without:
        if name not in OPTIONAL:
            raise BadInput(
                f"there is no pass {name!r} to leave out{did_you_mean(name, OPTIONAL)}",
                "",
                f"the passes are {', '.join(OPTIONAL)}",
            )


def places_of(forward: Forward, update: Update) -> dict[str, Place]:
    """Return, per placeholder of a trained weight in a flat arena, where it lies."""
    nodes = {item.name: item.node for item in forward.inputs}
    return {
        nodes[name]: Place(arena.name, gap, arena.zeros)
        for arena in update.arenas
        if arena.flat
        for name, gap in arena.gaps().items()
    }


def _check_release(policy: Policy, ranges: Ranges) -> None:
    if ranges.release and policy.level in (Level.CAREFUL, Level.TENSOR_CORES_ONLY):
        raise BadInput(
            f"the level {policy.level.value} keeps in FP32 what release would store in 16 bits",
            "the policy",
            "release with the level paper",
        )


def constants_of(forward: Forward) -> dict[str, torch.Tensor]:
    """Return, per placeholder, the buffers that forward never writes."""
    return {
        item.node: item.tensor
        for item in forward.inputs
        if item.kind is Kind.BUFFER and item.name not in forward.written
    }


def join(gradient: fx.GraphModule, slots: dict[str, Slot], update: Update) -> StepGraph:
    """Put gradient graph and update graph together; updated buffers become results."""
    step = StepGraph(
        gradient,
        update.module,
        {**slots, **update.slots},
        update.arenas,
        options=update.options,
        guards=update.guards,
    )
    graph = update.module.graph
    values = results(graph)
    like = next(iter(graph.find_nodes(op="placeholder")))
    updated = [slot for slot in slots.values() if slot.role is Role.UPDATED]
    for slot, node in zip(updated, add_inputs(graph, updated, like), strict=True):
        values[slot.name.removeprefix("next.")] = node
    set_results(graph, values)
    return step


def _mark(graph: fx.Graph, name: str) -> None:
    """Note on each node the pass that has made it, and on all others that none has."""
    for node in graph.nodes:
        MADE_BY.setdefault(node, name)


def _mark_module(module: fx.GraphModule, name: str) -> None:
    _mark(module.graph, name)


def _mark_step(step: StepGraph, name: str) -> None:
    for graph in step.graphs().values():
        _mark(graph, name)


def _lint(module: fx.GraphModule) -> None:
    for graph in all_graphs(module):
        graph.graph.lint()
