"""One plan over all pieces of a program, for a person to read.

Each piece is captured while the program runs on its example batch, and has a plan of its own. Names
begin with the piece: ``piece0.linear``. An override may use such a name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mpcompile.pieces.breaks import Piece, said
from mpcompile.pieces.dynamo_graph import Captured
from mpcompile.pieces.program_in_pieces import ProgramInPieces
from mpcompile.pieces.runner import Runner
from mpcompile.plan.dataflow import Dataflow, Op, Tensor
from mpcompile.plan.given import decide
from mpcompile.plan.plan import Cast, Decision, Plan
from mpcompile.precision import Precision
from mpcompile.program.batch import Batch
from mpcompile.program.random_state import drawn_again, random_state


@dataclass(frozen=True)
class WholePlan:
    """The plans of all pieces.

    Attributes:
        pieces: what Dynamo has made, in order.
        flows: per piece the planner's input; without ops if the piece cannot be rewritten.
        plans: per piece its plan.
        precision: the 16-bit format, or FP32.
        sentence: the breaks, with their lines.
        captured: per piece its graph before the casts; None if the piece cannot be rewritten.
    """

    pieces: tuple[Piece, ...]
    flows: tuple[Dataflow, ...]
    plans: tuple[Plan, ...]
    precision: Precision
    sentence: str
    captured: tuple[Captured | None, ...]

    @property
    def lines(self) -> list[str]:
        """A line for each piece: its ops and casts, and the Python code behind it."""
        return [f"{_PIECE}{index}: {piece}" for index, piece in enumerate(self.pieces)]

    @property
    def flow(self) -> Dataflow:
        """The planner's inputs side by side."""
        parts = [_named(flow, index) for index, flow in enumerate(self.flows)]
        return Dataflow(
            tuple(op for part in parts for op in part.ops),
            tuple(tensor for part in parts for tensor in part.tensors),
        )

    @property
    def plan(self) -> Plan:
        """The plans side by side."""
        parts = [_prefixed(plan, index) for index, plan in enumerate(self.plans)]
        made = decide(self.flow, Precision.FP32)  # gives the shape of the graph
        return Plan(
            self.precision,
            tuple(decision for part in parts for decision in part.decisions),
            {name: kinds for part in parts for name, kinds in part.storage.items()},
            tuple(cast for part in parts for cast in part.casts),
            sum(part.cost for part in parts),
            made.graph,
        )

    def in_fp32(self) -> WholePlan:
        """Return the same pieces without casts."""
        plans = tuple(decide(flow, Precision.FP32) for flow in self.flows)
        return replace(self, plans=plans, precision=Precision.FP32)

    def otherwise(self, op: str, wished: Callable[[Dataflow, str], Dataflow]) -> Plan:
        """Return the plan after a change of the wishes in one piece.

        Args:
            op: an op of `plan`.
            wished: takes the planner's input of its piece and the op's name there, and changes it.
        """
        head, _, name = op.partition(".")
        index = int(head.removeprefix(_PIECE))
        plan = decide(wished(self.flows[index], name), self.precision)
        plans = (*self.plans[:index], plan, *self.plans[index + 1 :])
        return replace(self, plans=plans).plan


_PIECE = "piece"


def whole_plan(program: ProgramInPieces, batch: Batch, precision: Precision) -> WholePlan:
    """Run a program once on a batch, in pieces, and return the plans of these.

    The caller puts back what the program changes beside the model's buffers.
    """
    before = program.runner
    way = replace(program.way, wide=(*program.way.wide, *program.way.narrow), narrow=())
    runner = Runner(before.workload, before.policy, before.why, way, shown=True)
    runner.like = before.like
    trial = ProgramInPieces(runner, batch)
    device = next(iter(before.workload.model.parameters())).device
    with drawn_again(random_state(device)):
        trial.forward((), batch)
    runner.put_back()
    flows = tuple(outcome.flow or Dataflow((), ()) for outcome in runner.outcomes)
    empty = Plan(precision, (), {}, (), 0)
    plans = tuple(outcome.plan or empty for outcome in runner.outcomes)
    sentence = said(runner.pieces, runner.why)
    captured = tuple(outcome.captured for outcome in runner.outcomes)
    return WholePlan(tuple(runner.pieces), flows, plans, precision, sentence, captured)


def in_piece(index: int) -> Callable[[str], str]:
    """Return a function that puts the name of a piece before the name of a node."""
    return lambda name: f"{_PIECE}{index}.{name}"


def _names(names: Sequence[str], name: Callable[[str], str]) -> tuple[str, ...]:
    return tuple(map(name, names))


def _named(flow: Dataflow, index: int) -> Dataflow:
    name = in_piece(index)
    return Dataflow(
        tuple(_op(op, name) for op in flow.ops),
        tuple(_tensor(tensor, name) for tensor in flow.tensors),
    )


def _op(op: Op, name: Callable[[str], str]) -> Op:
    return replace(
        op,
        id=name(op.id),
        reads=_names(op.reads, name),
        writes=_names(op.writes, name),
        keeps=_names(op.keeps, name),
        full_reads=_names(op.full_reads, name),
    )


def _tensor(tensor: Tensor, name: Callable[[str], str]) -> Tensor:
    return replace(tensor, id=name(tensor.id))


def _prefixed(plan: Plan, index: int) -> Plan:
    name = in_piece(index)

    def decision(item: Decision) -> Decision:
        return replace(item, op=name(item.op))

    def cast(item: Cast) -> Cast:
        return replace(
            item,
            id=name(item.id),
            tensor=name(item.tensor),
            source=name(item.source),
            readers=_names(item.readers, name),
        )

    return replace(
        plan,
        decisions=tuple(map(decision, plan.decisions)),
        storage={name(tensor): kinds for tensor, kinds in plan.storage.items()},
        casts=tuple(map(cast, plan.casts)),
    )
