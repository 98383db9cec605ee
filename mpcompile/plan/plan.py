"""A plan: per op its precision, per tensor its storage, the casts, each with its reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, ValidationError
from pydantic import Field as Limits

from mpcompile.errors import BadInput, printable
from mpcompile.plan.dataflow import Where
from mpcompile.plan.fingerprint import Graph
from mpcompile.precision import Precision
from mpcompile.validation import format_of, read_document, sentence, short, without_head

VERSION = 2
_SHOWN = 8
_AGAIN = "write it again with `mpcompile model.py`"

Count = Annotated[int, Limits(ge=0)]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one op.

    Attributes:
        op: the op's id.
        kind: the op's name.
        rule: the row of the op table.
        computes: the precision of its arithmetic (a Tensor Core's 16 bits mean 16-bit operands
            with FP32 accumulation).
        stores: the precision its results are stored in.
        reason: why.
        where: its position in the user's program.
    """

    op: str
    kind: str
    rule: str
    computes: Precision
    stores: Precision
    reason: str
    where: Where


@dataclass(frozen=True, slots=True)
class Cast:
    """One cast, shared by all its readers.

    Attributes:
        id: name of the copy, e.g. ``x.f16``.
        tensor: the tensor that it copies.
        source: the id that it reads: the tensor itself or another cast.
        to: its precision.
        readers: ids of the ops that read the copy, in graph order.
        elements: how many numbers it converts.
        reason: why it is needed.
    """

    id: str
    tensor: str
    source: str
    to: Precision
    readers: tuple[str, ...]
    elements: Count
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes moved if the cast is its own kernel: 2 on one side, 4 on the other."""
        return 6 * self.elements


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for one graph.

    Attributes:
        precision: the 16-bit format, or FP32 if nothing changes.
        decisions: one per op that has floating-point results, in graph order.
        storage: per tensor the precisions it is stored in, narrow first.
        casts: in graph order of the tensors they copy.
        cost: bytes materialised by the planner's model (``docs/planner.md``).
        graph: the shape of its graph; empty until the plan of a program is complete.
    """

    precision: Precision
    decisions: tuple[Decision, ...]
    storage: dict[str, tuple[Precision, ...]]
    casts: tuple[Cast, ...]
    cost: Count
    graph: Graph = field(default_factory=Graph)

    def __str__(self) -> str:
        """Return the counts, and the most frequent reasons; `decisions.txt` has them all."""
        narrow = sum(decision.computes is not Precision.FP32 for decision in self.decisions)
        lines = [
            f"plan in {self.precision.short}: {narrow} of {len(self.decisions)} ops compute in "
            f"16 bits, {len(self.casts)} casts"
        ]
        reasons = Counter((each.computes.short, each.reason) for each in self.decisions)
        for (precision, reason), count in reasons.most_common(_SHOWN):
            lines.append(f"{count:5}  {precision:4}  {reason}")
        if len(reasons) > _SHOWN:
            lines.append(f"       and {len(reasons) - _SHOWN} more reasons")
        return "\n".join(map(printable, lines))

    def decision(self, op: str) -> Decision:
        """Return the decision for an op id; raises KeyError if there is none."""
        for decision in self.decisions:
            if decision.op == op:
                return decision
        raise KeyError(op)

    def to_json(self) -> str:
        """Write the plan as a JSON document; `from_json` reads it back."""
        head = {"version": VERSION, "fingerprint": self.graph.fingerprint}
        return json.dumps({**head, **asdict(self)}, indent=1, default=lambda p: p.value)

    @staticmethod
    def from_json(text: str | bytes, where: str | None = None) -> Plan:
        """Read a plan from an untrusted source.

        Args:
            text: the document.
            where: its file, for error messages.

        Raises:
            BadInput: it is not a plan of this version, or its fingerprint does not match the graph
                that it describes.
        """
        try:
            file = format_of(PlanFile).validate_json(text)
        except ValidationError as error:
            raise _refusal(error, where) from error
        if file.fingerprint != file.graph.fingerprint:
            raise BadInput("the fingerprint does not match the plan's own graph", where, _AGAIN)
        return without_head(file, Plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile(Plan):
    """A plan as `plan.json` holds it.

    Attributes:
        version: of the format.
        fingerprint: SHA-256 of `graph`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Literal[2]
    fingerprint: str


def schema() -> dict[str, Any]:
    """Return the JSON schema of `plan.json`."""
    return format_of(PlanFile).json_schema()


def read_plan(path: Path) -> Plan:
    """Read a plan from a file; raises BadInput if it is none, see `Plan.from_json`."""
    return Plan.from_json(read_document(path, "plan.json", _AGAIN), str(path))


def _refusal(error: ValidationError, where: str | None) -> BadInput:
    """Return the error for a bad plan; a wrong version is the only problem that is named."""
    for problem in error.errors(include_url=False):
        if problem["loc"] == ("version",) and problem["type"] != "missing":
            what = f"this plan has version {short(problem['input'])}"
            return BadInput(f"{what}, but this mpcompile reads version {VERSION}", where, _AGAIN)
    return BadInput(f"this is not a plan: {sentence(error)}", where, _AGAIN)
