"""The shape of the graph that a plan is for, and the differences to another graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from mpcompile.plan.dataflow import Dataflow

_SHOWN = 3
_LONGEST = 160


@dataclass(frozen=True, slots=True)
class GraphOp:
    """One op of a graph: its name, and ids of the FP32 tensors it reads and writes, in order."""

    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The shape of a graph: a plan fits only a graph of the same shape.

    Attributes:
        ops: per op id its name, inputs and results.
        elements: per tensor id how many numbers it holds.
    """

    ops: dict[str, GraphOp] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shape in hexadecimal; the order of ops and tensors does not count."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def graph_of(flow: Dataflow) -> Graph:
    """Return the shape of a neutral graph."""
    return Graph(
        {op.id: GraphOp(op.kind, op.reads, op.writes) for op in flow.ops},
        {tensor.id: tensor.elements for tensor in flow.tensors},
    )


def differences(old: Graph, new: Graph, old_name: str, new_name: str) -> tuple[str, ...]:
    """Return the differences between two graphs in words; empty if they are the same.

    Args:
        old: a graph.
        new: another.
        old_name: a name for the first, such as ``the plan``.
        new_name: a name for the second, such as ``this program``.
    """
    both = [op for op in old.ops if op in new.ops]
    kinds = [op for op in both if old.ops[op].kind != new.ops[op].kind]
    reads = [op for op in both if old.ops[op].reads != new.ops[op].reads]
    writes = [op for op in both if old.ops[op].writes != new.ops[op].writes]
    sizes = [t for t in old.elements if new.elements.get(t, old.elements[t]) != old.elements[t]]

    def named(ops: Iterable[str], graph: Graph) -> list[str]:
        return [f"{op} ({graph.ops[op].kind})" for op in ops if op not in both]

    said = (
        _listed(f"only in {old_name}", named(old.ops, old)),
        _listed(f"only in {new_name}", named(new.ops, new)),
        _listed(
            "another op",
            [
                f"{op} is {old.ops[op].kind} in {old_name} and {new.ops[op].kind} in {new_name}"
                for op in kinds
            ],
        ),
        _listed(
            "other inputs",
            [
                f"{op} reads {_words(old.ops[op].reads)} in {old_name} and "
                f"{_words(new.ops[op].reads)} in {new_name}"
                for op in reads
            ],
        ),
        _listed("other results", writes),
        _listed(
            "another size",
            [
                f"{t} holds {old.elements[t]:,} numbers in {old_name} and {new.elements[t]:,} in "
                f"{new_name}"
                for t in sizes
            ],
        ),
        _listed(f"tensors only in {old_name}", [t for t in old.elements if t not in new.elements]),
        _listed(f"tensors only in {new_name}", [t for t in new.elements if t not in old.elements]),
    )
    return tuple(sentence for sentence in said if sentence)


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"


def _listed(what: str, items: list[str]) -> str:
    """Return ``what: a, b, c and 5 more``, or ``""`` without items."""
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{what}: {', '.join(item[:_LONGEST] for item in items[:_SHOWN])}{more}"
