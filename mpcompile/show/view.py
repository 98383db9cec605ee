"""The rows that a person looks at: one per node, for training steps and for ONNX models."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mpcompile.errors import BadInput
from mpcompile.plan.dataflow import Where
from mpcompile.validation import read_document, read_json, without_head

VERSION = 1
VIEW, PLAN, BEFORE = "view.json", "plan.json", "view.before.json"
"""Files of an artifact folder: the view of the step, the plan, the view of the step in FP32."""
STAGES = ("forward", "backward", "update")
PRECISIONS = ("f16", "bf16", "f32", "both", "other")
_AGAIN = "write it again with `mpcompile model.py`"

Stage: TypeAlias = Literal["forward", "backward", "update"]
NodeRole: TypeAlias = Literal["input", "op", "cast", "view", "output"]
NodePrecision: TypeAlias = Literal["f16", "bf16", "f32", "both", "other"]
_Count = Annotated[int, Field(ge=0)]


def _formats(text: object) -> tuple[str, ...]:
    """Return the formats in a text of a view's file, such as ``f16+f32``."""
    if not isinstance(text, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return tuple(part for part in text.split("+") if part)


_Formats = Annotated[tuple[str, ...], BeforeValidator(_formats)]


@dataclass(frozen=True, slots=True)
class ViewNode:
    """One node of a graph.

    Attributes:
        id: unique in its view; nodes of an update graph are ``update.NAME``.
        op: its op, such as ``addmm`` or ``MatMul``; for an input its role (``master``).
        role: ``op``; ``cast`` between two float formats; ``view``, which moves no bytes;
            ``input`` and ``output``.
        stage: stage of the step; always ``forward`` in a model that does not train.
        precision: ``f16``, ``bf16`` or ``f32`` if it computes in this format and its tensors are
            stored in it; ``both`` if it computes in FP32 on tensors that are stored in 16 bits, or
            converts between the two; ``other`` without such tensors.
        computes: the format of the operands it computes with, ``f32``; empty without a float.
        stores: the formats in which its results are stored, sorted; empty without a float. The
            file joins them with ``+``.
        type: its first result, ``f16[8,32]``; ``number`` for a Python number.
        bytes: bytes of all its results.
        reads: ids of the nodes it reads, each once, in order.
        planned: id of the op of the plan that decided about it, or empty.
        rule: the row of the op table, or the pass that made it; may be empty.
        reason: why it has this precision, a sentence without a full stop; may be empty.
        saved: forward makes it and backward reads it.
        alive: bytes of tensors that are alive while it runs, with the state; 0 if unknown.
        where: its source position in the user's program.
    """

    id: str
    op: str
    role: NodeRole
    stage: Stage
    precision: NodePrecision
    computes: str = ""
    stores: _Formats = ()
    type: str = ""
    bytes: _Count = 0
    reads: tuple[str, ...] = ()
    planned: str = ""
    rule: str = ""
    reason: str = ""
    saved: bool = False
    alive: _Count = 0
    where: Where = field(default_factory=Where)

    @property
    def stored(self) -> str:
        """The formats of its results as text, such as ``f16+f32``."""
        return "+".join(self.stores)


_FIELDS = tuple(item.name for item in fields(ViewNode) if item.name != "where")


def plain(node: ViewNode) -> dict[str, Any]:
    """Return a row as a JSON-ready dictionary; `dataclasses.asdict` would copy every string."""
    where = node.where
    row = {name: getattr(node, name) for name in _FIELDS}
    at = {"module": where.module, "file": where.file, "line": where.line}
    return row | {"stores": node.stored, "where": at}


@dataclass(frozen=True)
class View:
    """A graph for a person.

    Attributes:
        source: the name of the program or file, as the user gave it.
        kind: what it was read from; a ``plan`` knows the forward pass only.
        precision: the 16-bit format it was planned for, such as ``fp16``.
        nodes: in the order in which they run.
    """

    source: str
    kind: Literal["program", "onnx", "plan"]
    precision: Literal["fp16", "bf16", "fp32"]
    nodes: tuple[ViewNode, ...]

    @cached_property
    def by_id(self) -> dict[str, ViewNode]:
        """Every node by its id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each node that is read, the ids of its readers, in order."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for read in node.reads:
                found.setdefault(read, []).append(node.id)
        return {name: tuple(readers) for name, readers in found.items()}

    def to_json(self) -> str:
        """Return the view as a JSON document; `from_json` reads it back."""
        document = {
            "version": VERSION,
            "source": self.source,
            "kind": self.kind,
            "precision": self.precision,
            "nodes": [plain(node) for node in self.nodes],
        }
        return json.dumps(document, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes, where: str | None = None) -> View:
        """Read an untrusted view.

        Raises:
            BadInput: it is not a view of this version, or its nodes do not fit together.
        """
        file = read_json(_File, text, "this is not a view", where, _AGAIN)
        view: View = without_head(file, View)
        if len(view.by_id) != len(view.nodes):
            raise BadInput("two nodes of the view have the same id", where, _AGAIN)
        unknown = next((name for name in view.readers if name not in view.by_id), None)
        if unknown is not None:
            raise BadInput(
                f"a node of the view reads {unknown}, which is not in the view", where, _AGAIN
            )
        return view


@dataclass(frozen=True, kw_only=True)
class _File(View):
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]


def read_view(path: Path) -> View:
    """Read a view from a file; raise BadInput if it has none, see `View.from_json`."""
    return View.from_json(read_document(path, "view.json", _AGAIN), str(path))


def precision_of(computes: str, read: set[str], written: set[str]) -> NodePrecision:
    """Return the precision of a node from its formats.

    Args:
        computes: the format of its operands in arithmetic.
        read: the formats in which its operands are stored.
        written: the formats in which its results are stored.
    """
    formats = ({computes} | read | written) & {"f16", "bf16", "f32"}
    if not formats:
        return "other"
    if len(formats) > 1:
        return "both"
    (single,) = formats
    return single  # type: ignore[return-value]
