"""The graphs of a step on one layout of the weights, and the state that they share."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from mpcompile.errors import BadInput
from mpcompile.lower.cuda_graph import CapturedStep
from mpcompile.lower.lower import Lowered, Lowering
from mpcompile.lower.programs import Program, Programs
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.capture import Forward
from mpcompile.program.complex_parameters import like_of
from mpcompile.step.collectives import averaged
from mpcompile.step.graph import StepGraph
from mpcompile.step.optimizer_options import OptionInputs
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed
from mpcompile.train.batch_graphs import BatchGraph, BatchGraphs
from mpcompile.train.bound_graphs import BoundGradient, BoundWrites
from mpcompile.train.bound_state import BoundState
from mpcompile.train.changes.changing_numbers import BoundNumbers, ForBatch
from mpcompile.train.changes.guards import Guard
from mpcompile.train.changes.situation import Situation
from mpcompile.train.evaluation import MixedForward
from mpcompile.train.same_start import check_same_step

_Passed: TypeAlias = Callable[[Sequence[torch.Tensor]], list[Any]]


class OtherLayout(Exception):
    """A graph needs another layout of the weights than the step has.

    Attributes:
        made: the program, of which another `BoundStep` can be made.
    """

    def __init__(self, made: Program) -> None:
        super().__init__()
        self.made = made


class Uncopied:
    """An object that is refused by `copy`, `pickle` and ``torch.save``, with advice."""

    def __reduce_ex__(self, _: Any) -> Any:
        """Refuse to be copied or pickled: copied tensors would be no views of the arenas."""
        raise BadInput(
            "a step cannot be copied or pickled, because it belongs to one model and optimizer",
            fix="save its state with step.save(folder), or copy the model and compile the copy",
        )


class BoundStep:
    """Everything of a step that depends on where weights and optimizer state are stored.

    Attributes:
        transformed: the program that it was made of.
        state: the tensors behind its slots.
        lowered: its gradient graph for the first batch, and the update.
        forward: the graphs for evaluation.
        update: writes weights and state.
        gather: adds up the gradients of micro-batches, or None.
        options: hands over the optimizer's options.
        graphs: the gradient graphs.

    Args:
        program: the program, transformed.
        programs: all programs of the step.
        lowering: how graphs are run.
        situation: what the program was when it was transformed.
        before: the same step on another layout, whose scale and counters are used on; it must not
            be called any more.
    """

    def __init__(
        self,
        program: Program,
        programs: Programs,
        lowering: Lowering,
        situation: Situation,
        before: BoundStep | None = None,
    ) -> None:
        transformed = program.transformed
        workload, choices, step = transformed.workload, transformed.choices, transformed.step
        assert workload.optimizer is not None
        assert step is not None
        self.transformed, self._lowering, self._programs = transformed, lowering, programs
        device = next(iter(workload.model.parameters())).device
        backend = lowering.backend_on(device)
        self.lowered = program.lowered
        self.state: BoundState = BoundState(transformed, before.state.kept() if before else None)
        if before is not None:
            before.state.release(self.state)
        tensors = self.state.tensors
        policy = replace(choices.policy, precision=transformed.plan.precision)
        self.forward = MixedForward(workload.model, policy, backend, lowering.options)
        made = self.lowered.gradient_results
        self.update = BoundWrites(self.lowered.update, self.lowered.update_inputs, tensors, made)
        self.gather: BoundWrites | None = None
        if self.lowered.accumulate is not None:
            self.gather = BoundWrites(
                self.lowered.accumulate, self.lowered.accumulate_inputs, tensors, made
            )
        self.options = OptionInputs(workload.optimizer, step.guards, tensors)
        self._replays = lowering.cuda_graph and backend == "inductor" and device.type == "cuda"
        first = self._batch_graph(transformed.forward, step, self.lowered, workload.batch, tensors)
        self.graphs = BatchGraphs(first, situation, workload.batch, self._another)

    @classmethod
    def first(
        cls,
        transformed: Transformed,
        lowering: Lowering,
        for_batch: ForBatch,
        guard: Guard,
    ) -> BoundStep:
        """Return a new step.

        Args:
            transformed: its program.
            lowering: how graphs are run.
            for_batch: transforms the program again.
            guard: knows the program as it is, and its numbers that are inputs.
        """
        numbers = guard.numbers
        given = numbers.given_to(for_batch)
        programs = Programs(transformed, guard.situation, lowering, given, numbers.values)
        return cls(programs.first, programs, lowering, guard.situation)

    def transform(self, batch: Sequence[torch.Tensor], situation: Situation) -> Program:
        """Transform the program as it is now for a batch, or return what was made before."""
        return self._programs.get(batch, self.graphs.is_open, situation)

    def again(self, made: Program, situation: Situation, said: str, gathered: str) -> BoundStep:
        """Return the same step on another layout of the weights; this one must not be used on.

        Args:
            made: the program as it is now, transformed.
            situation: the same program for the guard.
            said: how it differs from before.
            gathered: how many micro-batches of an unfinished update have run, such as ``1 of 2``.

        Raises:
            BadInput: weights cannot be stored in another way now, or other processes have not made
                the same change.
        """
        step = made.transformed.step
        assert step is not None
        if gathered:
            raise BadInput(
                f"{said}, and {gathered} micro-batches of an update are gathered",
                fix="change what is trained after a call that updates",
            )
        before = self.transformed
        assert before.step is not None
        if any(arena.ranks > 1 for arena in before.step.arenas):
            raise BadInput(
                f"{said}, and each process holds a slice of the weights",
                fix="compile again inside `with step.whole():`",
            )
        parallel, optimizer = before.choices.loop.parallel, before.workload.optimizer
        if parallel is not None and optimizer is not None:
            check_same_step(step, before.choices.scale, optimizer, parallel)
        with torch.inference_mode(False):
            return BoundStep(made, self._programs, self._lowering, situation, self)

    def forget_pending(self) -> None:
        """Empty what an update over several micro-batches keeps between them."""
        assert self.transformed.step is not None
        for slot in self.transformed.step.slots.values():
            if slot.role is Role.PENDING:
                self.state.tensors[slot.name].zero_()

    def _another(self, batch: Sequence[torch.Tensor], is_open: tuple[bool, ...]) -> BatchGraph:
        with torch.inference_mode(False), self.state.placeholders_for_absent():
            program = self._programs.get(batch, is_open, self.graphs.situation)
        made = program.transformed
        assert made.step is not None
        constants = self.state.admit(made.forward, made.step)
        if constants is None:
            raise OtherLayout(program)
        lowered = program.lowered
        if not self._fits(made.step, lowered):
            raise OtherLayout(program)
        tensors = ChainMap(constants, self.state.tensors) if constants else self.state.tensors
        return self._batch_graph(made.forward, made.step, lowered, batch, tensors)

    def _batch_graph(
        self,
        captured: Forward,
        step: StepGraph,
        lowered: Lowered,
        batch: Sequence[torch.Tensor],
        tensors: Mapping[str, torch.Tensor],
    ) -> BatchGraph:
        """Bind a gradient graph and the graph after it: the update, or the sum of gradients."""
        is_open = captured.batch_size is not None
        given = captured.in_pieces.given if captured.in_pieces is not None else None
        gradient = BoundGradient(step, lowered, tensors, batch, is_open, given)
        after, passed = self.gather or self.update, self._passed(lowered)

        def run(batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            results = gradient(batch)
            after(results if passed is None else passed(results))
            return [results[index] for index in gradient.returned]

        shapes = [value.shape for value in batch] if is_open else None
        replayed = CapturedStep(run, lowered.obstacle, shapes) if self._replays else run
        numbers = BoundNumbers(captured.numbers)
        size, left = captured.batch_size, captured.left
        return BatchGraph(step, gradient, captured.returns, size, replayed, numbers, left)

    def unscaled_gradients(
        self, graph: BatchGraph, batch: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Run a gradient graph on a prepared batch; return each weight's unscaled gradient."""
        named = zip(graph.gradient.results, graph.gradient(batch), strict=True)
        scale = self.state.tensors.get(SCALE)
        inverse = 1.0 if scale is None else scale.double().reciprocal().float()
        mine, loop = self.transformed.step, self.transformed.choices.loop
        assert mine is not None
        parallel = loop.parallel
        late = parallel if parallel and parallel.in_update(loop.accumulate) else None
        found = {
            name.removeprefix("grad."): averaged(value.float() * inverse, late)
            for name, value in named
            if mine.slots[name].role is Role.GRADIENT
        }
        users = {item.name: item.tensor for item in self.transformed.forward.inputs}
        return {name: like_of(users[name], value) for name, value in found.items()}

    def _fits(self, step: StepGraph, lowered: Lowered) -> bool:
        """Whether the update of this layout can follow another gradient graph.

        In evaluation mode a graph leaves statistics as they are; nothing else may be missing.
        """
        roles = (Role.GRADIENT, Role.UPDATED)
        made = {name for name in lowered.gradient_results if step.slots[name].role in roles}
        mine = self.transformed.step
        assert mine is not None
        wanted = {name for name in self.lowered.gradient_results if mine.slots[name].role in roles}
        return made <= wanted and all(
            mine.slots[name].role is Role.UPDATED for name in wanted - made
        )

    def _passed(self, lowered: Lowered) -> _Passed | None:
        """Return how the results of a graph reach the update; None: as they are."""
        wanted, made = self.lowered.gradient_results, lowered.gradient_results
        if wanted == made:
            return None
        places = [made.index(name) if name in made else None for name in wanted]
        kept = [self.state.tensors.get(name.removeprefix("next.")) for name in wanted]

        def passed(results: Sequence[torch.Tensor]) -> list[Any]:
            return [
                value if place is None else results[place]
                for place, value in zip(places, kept, strict=True)
            ]

        return passed
