"""`TrainStep`: the callable a user gets, and the state behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx
from torch.optim.lr_scheduler import LRScheduler

from mpcompile.errors import BadInput, CompileError, alone
from mpcompile.lower.lower import Lowering
from mpcompile.lower.programs import Program
from mpcompile.passes.step.count_steps import SKIPPED
from mpcompile.program.batch import of_arguments
from mpcompile.step.graph import StepGraph
from mpcompile.step.processes import lost
from mpcompile.step.transformed import Transformed
from mpcompile.step.ways import OtherWay, Way
from mpcompile.step.whole_step import whole_step
from mpcompile.torch_private.tracing import note_step
from mpcompile.train import checkpoint
from mpcompile.train.batch_graphs import BatchGraph
from mpcompile.train.bound_step import BoundStep, OtherLayout
from mpcompile.train.changes.changing_numbers import ForBatch, NotAsInputs
from mpcompile.train.changes.guards import Guard
from mpcompile.train.changes.situation import changed_numbers, differences, summary
from mpcompile.train.checkpoint_of_processes import load, save
from mpcompile.train.optimizer_hooks import hooks_after_update, run_hooks
from mpcompile.train.outcome import Outcome
from mpcompile.train.repeats import Repeats
from mpcompile.train.schedules import Schedules
from mpcompile.train.skipped_in_a_row import SkippedInARow

Result = TypeVar("Result")

_log = logging.getLogger("mpcompile")


class TrainStep(Outcome):
    """One compiled training step: call it with a batch, get the loss.

    The model's parameters are the FP32 masters, and the graph updates the optimizer's own state.
    Both are views of the step's arenas, so ``model.state_dict()`` and ``optimizer.state_dict()``
    have their usual contents. If you write weights other than by PyTorch's own operations on the
    parameters, for example by ``param.data``, call `refresh` afterwards.

    Attributes:
        plan: the precision of each op, and the reason.
        captured: the forward graph with its casts.
        step: gradient graph, update graph and slots.
        backend: ``"interpreter"`` or ``"inductor"``.
        parallel: the processes that share the step; None: this process alone.
        pieces: the graphs that Dynamo has made so far of a program that cannot be one graph.
    """

    def __init__(
        self,
        transformed: Transformed,
        lowering: Lowering,
        for_batch: ForBatch,
    ) -> None:
        workload, choices = transformed.workload, transformed.choices
        assert workload.optimizer is not None
        self.plan, self._precision = transformed.plan, choices.precision
        self.parallel = choices.loop.parallel
        self._model, self._optimizer, self._rule = workload.model, workload.optimizer, choices.scale
        self._device = next(iter(workload.model.parameters())).device
        self.backend = lowering.backend_on(self._device)
        self._every, self._gathered = choices.loop.accumulate, 0
        self._schedules = Schedules(self._optimizer, choices.scale.gated)
        gradients = self._gradients if self.parallel is None else None
        self._repeats = Repeats(
            self._once, lambda: self._state, self._rule, self._every, self._device
        )
        counted = self._rule.gated and not self._rule.retry
        self._in_a_row = SkippedInARow(gradients, self._device) if counted else None
        self._guard = Guard.of(workload, transformed.forward)
        self._use(BoundStep.first(transformed, lowering, for_batch, self._guard))

    def _use(self, bound: BoundStep) -> None:
        """Run the graphs of a layout of the weights from now on."""
        transformed = bound.transformed
        assert transformed.step is not None
        self.captured, self.step = transformed.forward, transformed.step
        self.pieces = self.captured.in_pieces.runner.pieces if self.captured.in_pieces else []
        self._all, self._bound, self._state = bound, bound.state, bound.state.tensors
        self._lowered, self._graphs, self._forward = bound.lowered, bound.graphs, bound.forward
        self._update, self._gather, self._options = bound.update, bound.gather, bound.options
        self._guard.accept()
        self._after_update = hooks_after_update(self._optimizer)

    def __call__(self, *batch: Any, **named: Any) -> Any:
        """Run one step; with ``accumulate=k`` each k-th call updates.

        Args:
            batch: the arguments of the loss behind the model, as in the example batch. For the
                first batch of new shapes, such as the last of an epoch, or with other constants,
                the step captures, plans and lowers another graph on the same weights; the log
                ``mpcompile`` says so.
            named: its named arguments.

        Returns:
            The unscaled loss before the update: 0-d FP32, on the model's device, not copied to the
            host. If the loss function returns ``(loss, anything)``, so does the step; its tensors
            require no gradient.

        Raises:
            BadInput: the batch does not fit the program.
        """
        tensors = self._graphs.given(batch, named)
        return self._repeats(tensors) if self._repeats.needed else self._once(tensors)

    def _once(self, tensors: Sequence[torch.Tensor]) -> Any:
        due = self._gathered + 1 == self._every

        def run(graph: BatchGraph, given: list[torch.Tensor]) -> Any:
            self._schedules.settle()
            if self._gather is not None and self._gathered == 0:
                self._bound.keep_buffers()
                self.applied.zero_()
            if due:
                self._options.hand_over()
            return graph.result(graph.run(given), self._guard.leave)

        try:
            result = self._run(tensors, run)
            self._gathered = 0 if due else self._gathered + 1
            if due and self._gather is not None:
                self._update()
        except CompileError as error:
            alone(error)
            raise
        except RuntimeError as error:
            if self.parallel is not None and (gone := lost(error)) is not None:
                raise gone from error
            raise
        if due:
            note_step(self._optimizer)
            if self._in_a_row is not None:
                self._in_a_row.note(self._state[SKIPPED], tensors, result)
            self._schedules.note(self.applied)
            if self._after_update and (not self._rule.gated or bool(self.applied)):
                run_hooks(self._after_update, self._optimizer)
        return result

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run ``model(*inputs, **named)`` as in evaluation mode, in mixed precision.

        It reads the working copies that training reads. There are no gradients, and the model's own
        mode stays. The first call for each shape captures and plans a graph, by the policy alone.
        For FP32 on the masters call ``model.eval()(*inputs)``.

        Args:
            inputs: what the model takes, with tensors of any shape.
            named: the same by name.

        Returns:
            The model's result; its FP32 tensors are FP32 here too.
        """
        situation = self._guard.peek()
        self._take_up()
        if self._bound.take_over():
            self._graphs.bind()
        given = of_arguments(inputs, named)
        return self._forward(given, self._bound.working_copies(), situation)

    def scheduler(self, schedule: LRScheduler) -> None:
        """Let the step call ``schedule.step()`` after each update that was applied.

        The call is right before the next step, or in `settle`. The host then waits until the last
        update is done, if an update can be skipped. Do not step the schedule yourself.

        Args:
            schedule: a schedule of this step's optimizer that counts updates. For a schedule that
                counts epochs call ``schedule.step()`` yourself.

        Raises:
            BadInput: the schedule is of another optimizer, needs a measured number, or was given
                before.
        """
        self._schedules.add(schedule)

    def settle(self) -> None:
        """Step the schedules for the last update now, as `save` does, to read a rate.

        With `LossScale.retry` the last update runs again first if it was skipped.
        """
        self._repeats.finish()
        self._schedules.settle()

    def gradients(self, *batch: Any, **named: Any) -> dict[str, torch.Tensor]:
        """Run forward and backward only, and return each weight's unscaled FP32 gradient.

        Nothing changes but the random state, if the model draws random numbers. If several
        processes share the step, all must call this, and each gets the mean. The arguments are
        those of a step.
        """
        return self._gradients(self._graphs.given(batch, named))

    def _gradients(self, batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._run(batch, lambda *bound: self._all.unscaled_gradients(*bound))

    def values(self, *batch: Any) -> dict[str, torch.Tensor]:
        """Return the gradient graph's inputs for a batch, by slot: state and batch, not copied."""
        graph, given = self._prepare(self._graphs.given(batch, {}))
        return graph.gradient.values(given)

    def graph_of(self, *batch: Any) -> StepGraph:
        """Return the step graph for a batch; for the example's shapes it is `step` itself."""
        return self._graph(self._graphs.given(batch, {})).step

    def masters(self, *batch: Any) -> dict[str, torch.Tensor]:
        """Return the FP32 masters of each 16-bit copy that the graph for a batch reads."""
        return self._bound.masters(self.graph_of(*batch))

    def refresh(self) -> None:
        """Write the working copies again from the masters."""
        self._bound.refresh()

    def whole(self) -> AbstractContextManager[None]:
        """Put weights and optimizer state together if each process holds a slice of them.

        Inside ``with step.whole():`` model and optimizer are as on one process. At its end their
        values, which must be the same on all processes, are cut into slices again. All processes
        must enter it.
        """
        return self._bound.whole()

    def _run(
        self,
        batch: Sequence[torch.Tensor],
        run: Callable[[BatchGraph, list[torch.Tensor]], Result],
    ) -> Result:
        """Run the graph for a batch; if the program takes another way, the graph of that way."""
        graph, given = self._prepare(batch)
        try:
            return run(graph, given)
        except OtherWay as other:
            with other.repeated():
                self._go(other.way, batch)
                return run(*self._prepare(batch))

    def _go(self, way: Way, batch: Sequence[torch.Tensor]) -> None:
        """Go over to the graphs for another way of the program."""
        before, situation = self._guard.way, self._guard.situation
        self._guard.way = way
        try:
            self._guard.look()
            made = self._guard.made(self._all.transform, batch)
            self._lay_out(made, "the program takes another way for this batch")
        except BaseException:
            self._guard.way = before
            self._guard.reject(situation)
            raise

    def _prepare(self, batch: Sequence[torch.Tensor]) -> tuple[BatchGraph, list[torch.Tensor]]:
        """Take over writes to the weights; return the graph, and the batch in its layout."""
        if self._bound.uneven or not self._guard.holds():
            self._follow(batch)
        graph = self._graph(batch)
        if self._bound.take_over():
            self._graphs.bind()
        return graph, graph.gradient.prepare(batch)

    def _graph(self, batch: Sequence[torch.Tensor]) -> BatchGraph:
        """Return the graph for a batch, which is made if there is none."""
        try:
            return self._graphs(batch, self._guard.numbers.values())
        except OtherLayout as other:
            self._lay_out(other.made, self._graphs.said or "this batch reads the weights otherwise")
        except NotAsInputs as why:
            said = self._guard.numbers.give_up(why)
            self._graphs.enter(self._guard.look(), said)
        return self._graph(batch)

    def _follow(self, batch: Sequence[torch.Tensor]) -> None:
        """Take up what has changed in the program since the last call; see `Guard`."""
        others = self._take_up()
        if not (others or self._bound.uneven) and self._guard.holds():
            return
        self._graphs.check(batch)
        before, replaced = self._guard.situation, self._guard.state_was_replaced()
        now = self._guard.look()
        if replaced and now.layout == before.layout:
            self._bound.adopt()
            self._guard.accept()
        said = differences(before, now)
        try:
            self._after_update = hooks_after_update(self._optimizer)
            if others or self._bound.uneven or now.layout != before.layout:
                self._lay_out(self._guard.made(self._all.transform, batch), summary(said))
            elif said:
                new = () if self._graphs.knows(now) else changed_numbers(before, now)
                if self._guard.numbers.admit(new):
                    now = self._guard.look()
                self._graphs.enter(now, summary(differences(before, now)))
        except BaseException:
            self._guard.reject(before)
            raise

    def _take_up(self) -> bool:
        """Take up tensors in new storage; return whether some are not the step's own."""
        moved = self._guard.moved()
        if moved and self._bound.take_up(moved):
            self._guard.accept()
            return False
        return bool(moved)

    def _lay_out(self, made: Program, said: str) -> None:
        """Store weights and state in another way, on which the program as it is now can run."""
        gathered = f"{self._gathered} of {self._every}" if self._gathered else ""
        self._use(self._all.again(made, self._guard.situation, said, gathered))
        _log.info("%s: the step is made again, on the same state", said)

    @property
    def device(self) -> torch.device:
        """The device of the step."""
        return self._device

    @property
    def forward_graph(self) -> fx.GraphModule:
        """The forward graph with its casts."""
        return self.captured.module

    @property
    def step_graph(self) -> fx.GraphModule:
        """The whole step as one functional graph: state and batch in, next state and loss out."""
        return whole_step(self.step)

    def save(
        self, run: Path | str, *, keep: int | None = None, **also: checkpoint.Stateful
    ) -> Path:
        """Write a checkpoint as a new folder into the folder of a run; it is complete or absent.

        It holds weights, buffers, optimizer state and options, loss scale and counters, the global
        random generators, and the plan.

        Args:
            run: the folder of the run, made if it does not exist; one process writes to it.
            keep: how many checkpoints stay; None: all.
            also: other objects with a ``state_dict()`` to save: schedulers, loaders.

        Returns:
            The checkpoint, such as ``run/step-00000120``.

        Raises:
            BadInput: the checkpoint cannot be written, the folder has another checkpoint after the
                same number of steps, or some micro-batches of an update are still missing.
        """
        if self._gathered:
            done = f"{self._gathered} of {self._every} micro-batches of an update are done"
            raise BadInput(done, fix="save after the last micro-batch of an update")
        self.settle()
        return save(self._held, Path(run), keep, also, self.parallel, self._bound.whole)

    def load(self, run: Path | str, *, any_plan: bool = False, **also: checkpoint.Stateful) -> Path:
        """Take over a run's newest complete checkpoint, or one named checkpoint.

        Every byte is checked before any state changes. If a newer checkpoint is damaged, this warns
        with `mpcompile.errors.DamagedCheckpoint`.

        Args:
            run: the folder of the run, or one checkpoint.
            any_plan: also load a checkpoint with another plan, loss scaling or options of the
                optimizer; the step keeps its own.
            also: as for `save`, under the same names.

        Returns:
            The checkpoint that was loaded.

        Raises:
            BadInput: no checkpoint is complete, or it is of another model, optimizer or plan.
        """
        self._schedules.settle()  # before loading: an earlier update must not step loaded ones
        loaded = load(self._held, Path(run), any_plan, also, self.parallel, self._bound.whole)
        self._gathered = 0
        self._repeats.forget()
        self._all.forget_pending()
        return loaded

    def _held(self) -> checkpoint.Held:
        return checkpoint.Held(
            self._bound.named(),
            self._optimizer,
            self.plan,
            self._rule,
            self._device,
            self.taken + self.skipped,
            self._bound.adopt,
        )
