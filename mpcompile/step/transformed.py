"""The stages of a workload before it is lowered, and the user's choices for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward
from mpcompile.program.numbers.inputs import NumberPlace
from mpcompile.program.unfit_constants import UnfitConstant
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale


@dataclass(frozen=True)
class Choices:
    """The caller's choices for the transformation of a workload.

    Attributes:
        policy: which op may run in which precision.
        plan: decisions that override the policy.
        like: the plan of the same program with another batch shape, whose decisions are used; None
            for the first shape.
        ranges: measured ranges that decide, or None.
        loss_scale: None: `LossScale.auto` with FP16, none otherwise.
        loop: what happens between backward and the optimizer.
        without: names of passes to leave out.
        dynamic: whether one graph is made for batches of every size, or per tensor of the batch
            whether it has the size that is left open.
        verify: whether the captured graph is compared with the program on the batch.
        numbers: Python numbers of the program that are inputs of the graph.
        whole: whether a program that cannot become one graph is refused; it runs in pieces if not.
    """

    policy: Policy = field(default_factory=Policy)
    plan: Plan | None = None
    like: Plan | None = None
    ranges: Ranges | None = None
    loss_scale: LossScale | None = None
    loop: Loop = PLAIN
    without: Collection[str] = ()
    dynamic: bool | tuple[bool, ...] = False
    verify: bool = True
    numbers: tuple[NumberPlace, ...] = ()
    whole: bool = True

    @property
    def precision(self) -> Precision:
        """The 16-bit format, or FP32."""
        return self.plan.precision if self.plan is not None else self.policy.precision

    @property
    def scale(self) -> LossScale:
        """The rule of the loss scale."""
        if self.loss_scale is not None:
            return self.loss_scale
        return LossScale.auto() if self.precision is Precision.FP16 else LossScale.none()

    def for_another_batch(
        self, plan: Plan, open_dims: tuple[bool, ...], numbers: tuple[NumberPlace, ...] = ()
    ) -> Choices:
        """Return the choices for a batch of another shape, which follow the first one's plan.

        Its graph is verified too, and in any case if numbers are inputs, unless the weights are in
        slices: this process has no values.

        Args:
            plan: of the first shape.
            open_dims: per tensor of the batch whether it has the size that is left open.
            numbers: Python numbers that are inputs.
        """
        parallel = self.loop.parallel
        return replace(
            self,
            plan=None,
            like=plan,
            ranges=None,
            loss_scale=self.scale,
            dynamic=open_dims,
            verify=(self.verify or bool(numbers)) and not (parallel is not None and parallel.shard),
            numbers=numbers,
        )


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """The results of all stages before lowering.

    Attributes:
        workload: the workload.
        choices: the caller's choices.
        forward: the forward graph, casts inserted.
        flow: the forward graph as the planner's input.
        plan: the decisions.
        unfit: constants of the program that the 16-bit format cannot hold.
        changes: per pass the number of its changes.
        step: the step graph; None for a workload without a loss.
        initial: per arena the optimizer state before the first step.
    """

    workload: Workload
    choices: Choices
    forward: Forward
    flow: Dataflow
    plan: Plan
    unfit: tuple[UnfitConstant, ...]
    changes: dict[str, int]
    step: StepGraph | None = None
    initial: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
