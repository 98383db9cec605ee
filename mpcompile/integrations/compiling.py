"""`compile`: a training step in mixed precision, whose first batch is compared with FP32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from mpcompile.errors import CompileError, InexactStep, alone, from_here, printable, warn
from mpcompile.lower.lower import Backend, Lowering
from mpcompile.numerics.blame import blame
from mpcompile.numerics.first_batch import compare
from mpcompile.pipeline import prove, to_step
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.program.proof.verify import Proof
from mpcompile.program.workload import Workload
from mpcompile.step.loop import Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.processes import DataParallel
from mpcompile.step.transformed import Choices, Transformed
from mpcompile.train.train_step import TrainStep


def compile(
    model: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    batch: Any,
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
    verify: bool = True,
    whole: bool = False,
) -> TrainStep:
    """Compile a training step into mixed precision.

    Args:
        model: FP32. Its parameters become views of the step's arenas; their values and identity
            stay.
        loss: ``loss(model, *batch)``, or ``loss(model, **batch)`` for a dictionary, returns a 0-d
            FP32 tensor, or ``(loss, anything)``.
        optimizer: any optimizer of ``torch.optim`` whose ``step()`` takes no closure.
        batch: an example, as a loader gives it: a tuple or list of the loss's arguments behind the
            model, or a dictionary of its named ones. They hold tensors, and numbers, strings and
            None as constants. A later batch of other shapes or constants is one more graph.
        policy: default: FP16 by the op table.
        plan: decisions that hold before the policy, such as ``Plan.from_json(text)`` of a file
            that was edited; it must be of this very program and batch shape.
        ranges: what `calibrate` measured on this very program and batch shape.
        loss_scale: default: `LossScale.auto` with FP16, whose first value is measured on the first
            batch, none otherwise.
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
        verify: run the program once in eager PyTorch, forward and backward, and compare loss,
            gradients, buffers and random state with the captured graph, for each shape of batch.
            Then the same batch runs in 16 bits and is compared with it. All this costs about three
            eager steps and a copy of the weights while it compiles.
        whole: refuse a program that cannot become one graph, such as one with an ``if`` on a value.
            By default Dynamo captures it in pieces, and Python code between them runs in FP32 as in
            eager PyTorch; the log ``mpcompile`` and ``step.pieces`` name the lines.

    Warns:
        InexactStep: in 16 bits the loss, a gradient or a written buffer is too far from FP32.

    Raises:
        BadInput: an argument is wrong, or the program fails on the batch.
        Unfaithful: the captured graph does not do what the program does.
        CannotCapture: the program cannot become one graph, or not one for every size.
    """
    choices = Choices(
        policy=policy or Policy(),
        plan=plan,
        ranges=ranges,
        loss_scale=loss_scale,
        loop=Loop(max_grad_norm, max_grad_value, accumulate, parallel),
        without=tuple(without),
        dynamic=dynamic,
        verify=verify,
        whole=whole,
    )
    lowering = Lowering(backend, memory_budget, cuda_graph, options)
    try:
        made, proof = prove(Workload(model, batch, loss, optimizer), choices)
        if proof is not None:
            _warn_if_far(made, proof)
        del proof  # it holds a gradient of each weight
        return to_step(made, lowering)
    except CompileError as error:
        alone(error)
        raise


def _warn_if_far(made: Transformed, proof: Proof) -> None:
    found = compare(made, proof)
    if found is None or not found.far:
        return
    reason = blame(made, proof, found)
    place = f"{from_here(reason.where)}: " if reason.where else ""
    advice = "the decisions of the given plan count before overrides"
    if reason.remedy is not None:
        advice = f"{reason.remedy.arguments} mends it"
    elif reason.tried:
        advice = "no few ops in FP32 were found that mend it; `mpcompile tune` finds a set"
    warn(printable(f"{place}{reason.what}; {advice}."), InexactStep)
