"""A program as rows for the rules, in one form for PyTorch programs and ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TypeAlias

from mpcompile.lint.finding import Finding, Severity
from mpcompile.plan.authors import author_of
from mpcompile.plan.bounds.bound import NOTHING, Bound
from mpcompile.plan.dataflow import Op, Where
from mpcompile.plan.plan import Decision
from mpcompile.plan.rule import Sensitivity
from mpcompile.precision import Precision

SMALLEST = 2.0**-24
"""The smallest FP16 number; a magnitude of at most half of it becomes zero."""

SOURCES = frozenset(("parameter", "buffer", "batch", "constant"))
"""Ops of the rows for tensors that a graph holds or gets as inputs."""

MOVES = frozenset(("movement", "indexing", "cast"))
"""Rows of the op table whose ops copy numbers unchanged."""


class By(Enum):
    """Who decided a node's precision; the value is the phrase in messages."""

    PLAN = "as the plan has it"
    USER = "as an override or a plan file wants it"
    PROGRAM = "as the program itself asks for it"


def decided_by(decision: Decision, op: Op | None) -> By:
    """Return who decided about an op of the plan.

    Args:
        decision: the plan's; it may come from a file.
        op: the op as the policy has described it, if it is still there.
    """
    overridden = op is not None and op.overridden
    return By.USER if overridden or author_of(decision.reason) is not None else By.PLAN


@dataclass(frozen=True, slots=True)
class ConstantUse:
    """A number that FP16 cannot hold, as an op uses it.

    Attributes:
        value: the number.
        holder: the buffer or weight that holds it, or "" if it is written in the code.
        becomes: the number that replaces it without a loss (a mask's lowest number), or None.
        needless: the op would compute in FP32 without it too.
        costs: how many Tensor-Core ops stay in FP32 because of it.
    """

    value: float
    holder: str = ""
    becomes: float | None = None
    needless: bool = False
    costs: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """A length that a Tensor Core needs to be a multiple of eight.

    Attributes:
        name: the counted things, in the plural: ``inputs``.
        count: how many.
        padded: a pass pads it.
    """

    name: str
    count: int
    padded: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One op, parameter, buffer or input.

    Attributes:
        id: unique in its program.
        op: the op's name; one of `SOURCES` for a row that is not an op.
        row: its row of the op table.
        where: its source position in the user's program.
        reads: ids of its operands, in the order of the op's arguments.
        shape: of its first result.
        computes: the precision of its arithmetic; None without floating-point numbers.
        stores: the precision of its results.
        by: who decided that.
        constant: a number it uses that FP16 cannot hold.
        length: how many numbers are added up for each result; 0 if none are.
        flops: the FLOPs of a Tensor-Core op.
        sizes: the lengths of a Tensor-Core op's rows in memory.
        in_loss: the loss function calls it, not the model.
        bound: its upper bound, if it has one.
        reader: the id of an op that needs its result in FP32, and how rounding it would hurt there.
        known: the bound of its numbers, without data.
        channels_last: whether a convolution's input has the channels of a pixel next to each
            other; None for other ops.
    """

    id: str
    op: str
    row: str
    where: Where = field(default_factory=Where)
    reads: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    computes: Precision | None = None
    stores: Precision | None = None
    by: By = By.PLAN
    constant: ConstantUse | None = None
    length: int = 0
    flops: int = 0
    sizes: tuple[Size, ...] = ()
    in_loss: bool = False
    bound: float | None = None
    channels_last: bool | None = None
    reader: tuple[str, Sensitivity] | None = None
    known: Bound = NOTHING

    @property
    def narrow(self) -> bool:
        """Whether it computes in 16 bits."""
        return self.computes in (Precision.FP16, Precision.BF16)

    @property
    def stores_narrow(self) -> bool:
        """Whether its results are rounded to 16 bits."""
        return self.stores in (Precision.FP16, Precision.BF16)

    def finding(
        self, rule: str, severity: Severity, message: str, fix: str, detail: str = ""
    ) -> Finding:
        """Return a finding at this node."""
        return Finding(rule, severity, message, fix, self.id, self.op, self.where, detail)


@dataclass(frozen=True)
class Program:
    """The forward pass of a planned program.

    Attributes:
        source: the program, as the user named it.
        kind: ``torch`` or ``onnx``.
        precision: the 16-bit format of the plan; FP32 if nothing changes.
        nodes: in the order in which they run.
    """

    source: str
    kind: str
    precision: Precision
    nodes: tuple[Node, ...]

    @cached_property
    def by_id(self) -> dict[str, Node]:
        """Every node by its id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def readers(self) -> dict[str, tuple[Node, ...]]:
        """For each id, the nodes that read it."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def maker(self, node: Node, operand: int = 0) -> Node | None:
        """Return the node that makes one of a node's operands."""
        if operand >= len(node.reads):
            return None
        return self.by_id.get(node.reads[operand])

    def origins(
        self, start: Node | None, through: Callable[[Node], bool], most: int = 64
    ) -> Iterator[Node]:
        """Yield the nodes that a node's numbers come from, through nodes that pass them on.

        Args:
            start: the node.
            through: whether a node passes on the numbers it reads.
            most: how many nodes to look at; more distant nodes have no clear relation.
        """
        pending, seen = [start] if start is not None else [], set[str]()
        while pending and len(seen) < most:
            node = pending.pop()
            if node.id in seen:
                continue
            seen.add(node.id)
            if not through(node):
                yield node
                continue
            pending += [self.by_id[name] for name in node.reads if name in self.by_id]


Check: TypeAlias = Callable[[Program], Iterator[Finding]]
"""A rule's function; it yields findings in the order of the program's nodes."""


def moves(node: Node) -> bool:
    """Whether a node copies numbers unchanged."""
    return node.row in MOVES


def title(precision: Precision) -> str:
    """Return a format's name for people: ``FP16``."""
    return {Precision.FP16: "FP16", Precision.BF16: "BF16", Precision.FP32: "FP32"}[precision]
