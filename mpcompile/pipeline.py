"""The way of the data: load, capture, plan, insert casts, differentiate, passes, lower."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import fx

from mpcompile.errors import (
    BadInput,
    CompileError,
    Defect,
    NotOneGraph,
    ReplacedBuffer,
    did_you_mean,
    warn,
)
from mpcompile.lower.lower import Lowering
from mpcompile.passes.order import (
    BEFORE_AUTOGRAD,
    GRADIENT,
    OPTIONAL,
    forward_passes,
    matmul_passes,
    training_passes,
)
from mpcompile.passes.runner import run_passes
from mpcompile.pieces.program_in_pieces import for_batch as for_batch_in_pieces
from mpcompile.pieces.program_in_pieces import program_in_pieces
from mpcompile.pieces.whole_plan import WholePlan, whole_plan
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.given import decide, for_other_shapes
from mpcompile.plan.measured import MeasuredOverflow, overruled
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Level, Policy, UnmatchedOverride
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.batch_size import find_open_dims
from mpcompile.program.capture import Forward, capture
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.describe import dataflow
from mpcompile.program.faint_weights import faint_reasons
from mpcompile.program.graph_text import graph_text
from mpcompile.program.marks import MADE_BY
from mpcompile.program.masters import masters_of
from mpcompile.program.numbers.inputs import NumberPlace
from mpcompile.program.open_capture import capture_open, check_open
from mpcompile.program.proof.effects import Effects
from mpcompile.program.proof.first_run import settle
from mpcompile.program.proof.left_behind import capture_left
from mpcompile.program.proof.verify import Proof
from mpcompile.program.proof.verify import verify as verify_graph
from mpcompile.program.tracing.export import raised_in_torch, torchs_own
from mpcompile.program.tracing.inner_gradients import ComputesGradients
from mpcompile.program.tracing.traced_program import Watch
from mpcompile.program.unfit_constants import UnfitConstant, unfit_constants, unfit_reasons
from mpcompile.program.workload import Workload
from mpcompile.step.differentiate import differentiate
from mpcompile.step.first_scale import with_common_scale, with_first_scale
from mpcompile.step.graph import StepGraph
from mpcompile.step.inner_gradients import record_program
from mpcompile.step.slices import is_absent
from mpcompile.step.transformed import Choices, Transformed
from mpcompile.step.unreached import NotReached, check_any_reached, say_unused, unreached
from mpcompile.step.update_of_program import arena_positions, join, update_of
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.tracing import trace_artifact
from mpcompile.train.same_start import check_same_step, spread
from mpcompile.train.train_step import TrainStep

NO_CHOICES = Choices()
BY_DEVICE = Lowering()


def to_step(transformed: Transformed, lowering: Lowering = BY_DEVICE) -> TrainStep:
    """Lower a transformed workload and bind its state; raises BadInput if it has no loss."""
    workload, step = transformed.workload, transformed.step
    if step is None or workload.optimizer is None:
        raise BadInput(
            "the workload has no loss and no optimizer", workload.origin, "add both to train it"
        )
    transformed = with_common_scale(transformed)
    choices, pieces = transformed.choices, transformed.forward.in_pieces
    if pieces is not None:
        device = next(iter(workload.model.parameters())).device
        pieces.runner.backend = lowering.backend_on(device)

    def for_batch(
        batch: Sequence[torch.Tensor],
        open_dims: tuple[bool, ...],
        numbers: tuple[NumberPlace, ...],
    ) -> Transformed:
        # The caller may be inside torch.no_grad(), and a step trains there too.
        with torch.inference_mode(False), torch.enable_grad():
            given = replace(workload, batch=batch)
            others = choices.for_another_batch(transformed.plan, open_dims, numbers)
            if pieces is None:
                return transform(given, others)
            effects = Effects(given, again=True)
            with effects.undone_unsaid():
                forward = for_batch_in_pieces(pieces.runner, given.batch)
            return _transformed(given, others, forward, effects.undone_unsaid)

    parallel = choices.loop.parallel
    if parallel is not None:
        check_same_step(step, choices.scale, workload.optimizer, parallel)
        spread(workload.model, workload.optimizer, parallel)
    return TrainStep(transformed, lowering, for_batch)


def plan_of_pieces(made: Transformed) -> WholePlan | None:
    """Return the plans of all pieces for the example batch; None if the program is one graph.

    The program runs once more, and what it changes is put back.
    """
    program = made.forward.in_pieces
    if program is None:
        return None
    effects = Effects(made.workload, again=True)
    with effects.undone_unsaid(), torch.enable_grad():
        return whole_plan(program, made.workload.batch, made.choices.precision)


def transform(workload: Workload, choices: Choices = NO_CHOICES) -> Transformed:
    """Run every stage before lowering; nothing of the user's is changed.

    Warns with `MeasuredOverflow` of each tensor that the user wants in FP16 though it was measured
    to be too large for it.

    Raises:
        BadInput, CannotCapture, Unfaithful: see `mpcompile.compile`.
    """
    return prove(workload, choices)[0]


def prove(workload: Workload, choices: Choices = NO_CHOICES) -> tuple[Transformed, Proof | None]:
    """Do what `transform` does; also return the proof of the captured graph, if there is one.

    The proof holds a gradient of each weight, so it should not be kept for long.
    """
    _check_passes(choices.without)
    if choices.ranges is not None:
        _check_release(choices.policy, choices.ranges)
    with masters_of(workload.model, workload.own_dtypes or {}):
        return _proved(workload, choices)


def _proved(workload: Workload, choices: Choices) -> tuple[Transformed, Proof | None]:
    effects = Effects(workload, again=choices.like is not None)
    try:
        return _as_one_graph(workload, choices, effects)
    except NotOneGraph as error:
        if isinstance(error, ReplacedBuffer) and settle(workload, effects):
            return _proved(workload, choices)
        refusal = error
    except (CompileError, Defect):
        raise
    except Exception as error:
        if not raised_in_torch(error):
            raise
        refusal = torchs_own(error, workload)
    if choices.whole or workload.optimizer is None:
        raise refusal
    with effects.undone_unsaid():
        parallel = choices.loop.parallel
        copies = parallel is None or not parallel.shard  # a slice cannot go over to other copies
        forward = program_in_pieces(workload, choices.policy, refusal, copies=copies)
    return _transformed(workload, choices, forward, effects.undone_unsaid), None


def _as_one_graph(
    workload: Workload, choices: Choices, effects: Effects
) -> tuple[Transformed, Proof | None]:
    with effects.undone():
        forward = _captured(workload, choices, effects)
    # Weights in slices have no values here to run the program with.
    held = not any(map(is_absent, workload.model.parameters()))
    proof = None
    if choices.verify and workload.optimizer is not None and held:
        first = choices.scale.measured and choices.like is None
        proof = verify_graph(workload, forward, effects, measured=first)
    made = _transformed(workload, choices, forward, effects.undone)
    if proof is not None:
        made = with_first_scale(made, proof.full.largest)
    if choices.like is None:  # once for a step, not for each shape of batch
        effects.say()
    return made, proof if made.step is not None else None


def _transformed(
    workload: Workload,
    choices: Choices,
    forward: Forward,
    undone: Callable[[], AbstractContextManager[None]],
) -> Transformed:
    """Plan a captured program, rewrite it, and make its step."""
    precision = choices.precision
    # What is transformed in FP32 is there to compare with.
    trace = (lambda *_: None) if precision is Precision.FP32 else trace_artifact
    trace("mpcompile_before", lambda: graph_text(forward.module.graph))
    unfit = unfit_constants(forward.module, forward.constants(), precision)
    # An override names an op of a piece, not the op that runs the pieces.
    unmatched = warnings.catch_warnings(action="ignore", category=UnmatchedOverride)
    with unmatched if forward.in_pieces is not None else nullcontext():
        flow = describe(forward, choices.policy, unfit)
    plan = _planned(flow, choices)
    trace("mpcompile_decisions.json", plan.to_json)
    changes = run_passes(forward.module, forward_passes(plan), _lint)
    for graph in all_graphs(forward.module):
        graph.recompile()
    trace("mpcompile_after", lambda: graph_text(forward.module.graph))
    made = Transformed(
        workload=workload,
        choices=choices,
        forward=forward,
        flow=flow,
        plan=plan,
        unfit=unfit,
        changes=changes,
    )
    if workload.optimizer is None:
        return made
    with undone():  # hooks of the program run in its backward pass
        made = _with_reached(made, workload.optimizer)
    check_open(forward, workload)
    trace("mpcompile_step", lambda: str(made.step))
    return made


def _captured(workload: Workload, choices: Choices, effects: Effects) -> Forward:
    dynamic, numbers = choices.dynamic, choices.numbers
    open_dims = find_open_dims(workload.batch) if dynamic is True else dynamic

    def watched(watch: Watch | None) -> Forward:
        if open_dims:
            return capture_open(workload, open_dims, numbers, watch)
        return capture(workload, (), numbers, watch)

    try:
        return watched(None) if workload.optimizer is None else capture_left(effects, watched)
    except ComputesGradients as error:
        if open_dims or numbers:
            error.what += ", and its batch size is open" if open_dims else ", and a number changes"
            raise
    return capture(workload, recorded=record_program(workload))


def _planned(flow: Dataflow, choices: Choices) -> Plan:
    given = choices.plan if choices.like is None else for_other_shapes(choices.like, flow)
    plan = decide(flow, choices.policy.precision, given, choices.ranges)
    if choices.ranges is not None:
        for sentence in overruled(plan, choices.ranges):
            warn(sentence, MeasuredOverflow)
    return plan


def _with_reached(made: Transformed, optimizer: torch.optim.Optimizer) -> Transformed:
    """Make the step of the parameters that the loss reaches; eager PyTorch leaves the others."""
    forward, origin = made.forward, made.workload.origin
    without = unreached(forward, optimizer)
    check_any_reached(without, optimizer, forward, origin)
    try:
        done = _with_step(made, optimizer, without)
    except NotReached as error:
        without = (*without, *error.names)
        check_any_reached(without, optimizer, forward, origin)
        done = _with_step(made, optimizer, without)
    if made.choices.like is None:
        say_unused(without)
    return done


def _with_step(
    made: Transformed, optimizer: torch.optim.Optimizer, without: Collection[str] = ()
) -> Transformed:
    """Differentiate, trace the update, and run the training passes."""
    forward, choices, workload = made.forward, made.choices, made.workload
    trained, update = update_of(workload, optimizer, forward, choices.loop, without)
    # The user is shown the graph of composite ops; autograd gets a copy.
    prepared = replace(forward, module=copy_graph(forward.module))
    passes = matmul_passes(arena_positions(forward, update), choices.without)
    changes = made.changes | run_passes(prepared.module, passes, _lint, _mark_module)
    changes |= run_passes(prepared.module, BEFORE_AUTOGRAD, _lint)
    gradient, slots = differentiate(prepared, trained, workload.origin)
    for name, count in run_passes(gradient, GRADIENT, _lint, _mark_module).items():
        changes[name] = changes.get(name, 0) + count
    step = join(gradient, slots, update)
    order = training_passes(choices.scale, choices.loop)
    changes |= run_passes(step, order, StepGraph.check, _mark_step)
    return replace(made, changes=changes, step=step, initial=update.initial)


def describe(forward: Forward, policy: Policy, unfit: tuple[UnfitConstant, ...] = ()) -> Dataflow:
    """Describe a captured forward graph to the planner."""
    fixed = {item.node: item.kind.fixed for item in forward.inputs}
    held = forward.constants() | forward.weights()
    reasons = faint_reasons(forward.module, held, policy.precision)
    reasons |= unfit_reasons(forward.module, unfit)
    return dataflow(forward.module, fixed, policy, reasons, forward.constants())


def _check_passes(without: Collection[str]) -> None:
    for name in without:
        if name not in OPTIONAL:
            raise BadInput(
                f"there is no pass {name!r} to leave out{did_you_mean(name, OPTIONAL)}",
                fix=f"the optional passes are {', '.join(OPTIONAL)}",
            )


def _check_release(policy: Policy, ranges: Ranges) -> None:
    if ranges.release and policy.level in (Level.CAREFUL, Level.TENSOR_CORES_ONLY):
        raise BadInput(
            f"the level {policy.level.value} keeps tensors in FP32 that release would store in "
            "16 bits",
            "the policy",
            "use release with the level paper",
        )


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
