"""A plan: per op its precision, per tensor its storage, the casts, each with its reason."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from mpcompile.dataflow import Where
from mpcompile.errors import BadInput
from mpcompile.precision import Precision

VERSION = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one op.

    Attributes:
        op: the op's id.
        kind: the op's name.
        rule: the row of the op table.
        computes: the precision of its arithmetic (a Tensor Core's 16 bits mean 16-bit operands
            with FP32 accumulation).
        stores: the precision its results are stored in.
        reason: why.
        where: its place in the user's program.
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
        tensor: the tensor it is a copy of.
        source: what it reads: the tensor itself or another cast's id.
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
    elements: int
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes moved when the cast is a kernel of its own: 2 on one side, 4 on the other."""
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
    """

    precision: Precision
    decisions: tuple[Decision, ...]
    storage: dict[str, tuple[Precision, ...]]
    casts: tuple[Cast, ...]
    cost: int

    def decision(self, op: str) -> Decision:
        """Return the decision for an op id; raises KeyError if there is none."""
        for decision in self.decisions:
            if decision.op == op:
                return decision
        raise KeyError(op)

    def to_json(self) -> str:
        """Write the plan as a JSON document; `from_json` reads it back."""
        document = {"version": VERSION, **asdict(self)}
        return json.dumps(document, indent=1, default=lambda precision: precision.value)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan; raises BadInput if the text is not a plan of this version."""
        try:
            document: dict[str, Any] = json.loads(text)
            if document["version"] != VERSION:
                raise BadInput(f"plan version {document['version']} is not {VERSION}", "", "")
            return Plan(
                precision=Precision(document["precision"]),
                decisions=tuple(
                    Decision(
                        **{
                            **row,
                            "computes": Precision(row["computes"]),
                            "stores": Precision(row["stores"]),
                            "where": Where(**row["where"]),
                        }
                    )
                    for row in document["decisions"]
                ),
                storage={
                    tensor: tuple(Precision(name) for name in names)
                    for tensor, names in document["storage"].items()
                },
                casts=tuple(
                    Cast(**{**row, "to": Precision(row["to"]), "readers": tuple(row["readers"])})
                    for row in document["casts"]
                ),
                cost=int(document["cost"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"this is not a plan ({error!r})", "", "write one again") from error
