"""A training step, or a forward pass without one, as rows for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import fx

from mpcompile.passes.runner import about
from mpcompile.plan.dataflow import Where
from mpcompile.plan.plan import Cast, Decision
from mpcompile.precision import Precision
from mpcompile.program.capture import source_position
from mpcompile.program.casts import is_cast, source_of, widens
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import BACKWARD, MADE_BY, PLANNED, SLOT, SLOTS, TERMS, WHERE
from mpcompile.show.view import NodeRole, Stage, View, ViewNode, precision_of
from mpcompile.step.graph import StepGraph
from mpcompile.step.liveness import (
    alive_bytes,
    result_bytes,
    saved_tensors,
    state_bytes,
    tensor_bytes,
)
from mpcompile.step.transformed import Transformed
from mpcompile.torch_private.ops import is_view, op_name

_FORMATS = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
_NAMES: dict[Precision, Literal["fp16", "bf16", "fp32"]] = {
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
    Precision.FP32: "fp32",
}


def view_of(made: Transformed, source: str) -> View:
    """Return a view of a transformed program, node by node.

    If the workload has a loss, these are forward, backward and update of its step, as they are
    lowered; else the forward graph.

    Args:
        made: what `mpcompile.pipeline.transform` returned.
        source: the program, as the user named it.
    """
    decided = {decision.op: decision for decision in made.plan.decisions}
    casts = {cast.id: cast for cast in made.plan.casts}
    reasons = _Reasons(decided, casts, {} if made.step is None else _uses(made.step.gradient.graph))
    if made.step is None:
        roles = {item.node: item.kind.value for item in made.forward.inputs}
        nodes = _rows(made.forward.module.graph, "", roles, 0, reasons)
    else:
        step, state = made.step, state_bytes(made.step)
        roles = {name: slot.role.value for name, slot in step.slots.items()}
        nodes = _rows(step.gradient.graph, "", roles, state, reasons)
        nodes += _rows(step.update.graph, "update.", roles, state + _passed(step), reasons)
    return View(source, "program", _NAMES[made.plan.precision], tuple(nodes))


@dataclass(frozen=True, slots=True)
class _Reasons:
    """Finds the reason for each node.

    Attributes:
        decided: the plan's decisions, by the ids in the nodes.
        casts: its casts, in the same way.
        uses: per weight the number of uses over which its gradient is added in FP32.
    """

    decided: Mapping[str, Decision]
    casts: Mapping[str, Cast]
    uses: Mapping[str, int]

    def rule_and_reason(self, node: fx.Node, role: NodeRole, stage: Stage) -> tuple[str, str]:
        """Return the row of the op table or the pass that made a node, and a sentence."""
        planned, made_by = PLANNED.get(node, ""), MADE_BY.get(node, "")
        if role == "input":
            uses = self.uses.get(str(SLOT.get(node, "")).removesuffix(".working"))
            return "", f"its gradient is added in FP32 over {uses:,} uses" if uses else ""
        if node in TERMS:
            return "", f"the sum of {TERMS[node]:,} terms, added in FP32"
        if role == "cast" and planned in self.casts:
            return "cast", self._cast(node, self.casts[planned], stage)
        if planned in self.decided:
            decision = self.decided[planned]
            if stage == "forward":
                return decision.rule, decision.reason
            return decision.rule, f"backward of {planned} ({decision.kind}): {decision.reason}"
        if made_by:
            return made_by, _purpose(made_by)
        if stage == "update":
            return "update", "the optimizer computes in FP32, on the master weights (paper 3.1)"
        if role == "cast":
            return (
                "cast",
                "it is in the program, or it was added where gradients of two formats meet",
            )
        if stage == "backward" and role == "op":
            return "gradient", "autograd added it where gradients begin or are summed"
        return "", ""

    @staticmethod
    def _cast(node: fx.Node, cast: Cast, stage: Stage) -> str:
        if stage == "forward":
            return cast.reason
        if not widens(node):
            stored = _FORMATS[node.meta["val"].dtype]
            return f"the gradient of {cast.tensor} is stored in {stored}, like {cast.tensor}"
        if source_of(node) in BACKWARD:
            return f"arithmetic in FP32 reads the gradient of {cast.tensor}"
        cost = "a cast costs less than an FP32 copy"
        return f"arithmetic in FP32 reads {cast.tensor} again; {cost}"


def _uses(gradient: fx.Graph) -> dict[str, int]:
    """Return per weight how many uses the long sum has that is its gradient."""
    output = gradient.output_node()
    found = {}
    for name, node in zip(SLOTS.get(output, ()), output.args[0], strict=False):  # type: ignore[arg-type]
        while isinstance(node, fx.Node) and (is_view(node) or is_cast(node)):
            node = node.all_input_nodes[0]
        if isinstance(node, fx.Node) and node in TERMS:
            found[name.removeprefix("grad.")] = TERMS[node]
    return found


@cache
def _purpose(name: str) -> str:
    """Return the purpose of a pass: the first sentence of its module's docstring."""
    return " ".join(about(name).split("\n\n")[0].split()).rstrip(".")


def _passed(step: StepGraph) -> int:
    """Return the bytes of gradients and updated buffers, which are kept until the update."""
    return result_bytes(step.gradient.graph, first=1)


def _rows(
    graph: fx.Graph, prefix: str, roles: Mapping[str, str], state: int, reasons: _Reasons
) -> list[ViewNode]:
    alive, saved = alive_bytes(graph), saved_tensors(graph)
    return [
        _row(node, prefix, roles, state + alive[node], node in saved, reasons)
        for node in graph.nodes
        if node.op != "output"
    ] + list(_outputs(graph, prefix))


def _row(
    node: fx.Node,
    prefix: str,
    roles: Mapping[str, str],
    alive: int,
    saved: bool,
    reasons: _Reasons,
) -> ViewNode:
    role = _role(node)
    stage = _stage(node, prefix)
    values = _tensors(node.meta.get("val"))
    computes, read, written = _formats(node, role)
    rule, reason = reasons.rule_and_reason(node, role, stage)
    slot = str(SLOT.get(node, node.name))
    return ViewNode(
        id=f"{prefix}{node.name}",
        op=roles.get(slot, "input") if role == "input" else op_name(node),
        role=role,
        stage=stage,
        precision=precision_of(computes, read, written),
        computes=computes,
        stores=tuple(sorted(written)),
        type=_type(node.meta.get("val")),
        bytes=0 if role == "view" else sum(map(tensor_bytes, values)),
        reads=tuple(f"{prefix}{item.name}" for item in node.all_input_nodes),
        planned=PLANNED.get(node, ""),
        rule=rule,
        reason=reason,
        saved=saved and role != "input",
        alive=alive,
        where=_where(node, slot, roles),
    )


def _outputs(graph: fx.Graph, prefix: str) -> Iterator[ViewNode]:
    output = graph.output_node()
    results = output.args[0]
    results = results if isinstance(results, list | tuple) else [results]
    names = SLOTS.get(output) or [f"result.{i}" for i in range(len(results))]
    for name, node in zip(names, results, strict=True):
        if not isinstance(node, fx.Node):
            continue
        value = node.meta.get("val")
        stored = _FORMATS.get(value.dtype, "") if isinstance(value, torch.Tensor) else ""
        yield ViewNode(
            id=f"{prefix}return.{name}",
            op=str(name),
            role="output",
            stage=_stage(node, prefix),
            precision=precision_of(stored, set(), {stored}),
            computes=stored,
            stores=(stored,) if stored else (),
            type=type_text(value),
            reads=(f"{prefix}{node.name}",),
        )


def _role(node: fx.Node) -> NodeRole:
    if node.op in ("placeholder", "get_attr"):
        return "input"
    if is_cast(node) and _FORMATS.keys() >= {node.meta["val"].dtype, _dtype(source_of(node))}:
        return "cast"
    # Taking an item of a tuple is not an op of its own.
    return "view" if is_view(node) or op_name(node) == "getitem" else "op"


def _stage(node: fx.Node, prefix: str) -> Stage:
    if prefix:
        return "update"
    return "backward" if node in BACKWARD else "forward"


def _where(node: fx.Node, slot: str, roles: Mapping[str, str]) -> Where:
    if node.op == "placeholder":
        weight = roles.get(slot) in ("master", "working", "buffer", "constant", "shared")
        return Where(slot.removesuffix(".working").rpartition(".")[0] if weight else "")
    where = WHERE.get(node)
    return where if isinstance(where, Where) else source_position(node)


def _formats(node: fx.Node, role: NodeRole) -> tuple[str, set[str], set[str]]:
    """Return a node's compute format, and the storage formats of operands and results.

    A cast next to it counts as part of it: a fusing backend converts in registers.
    """
    operands = [value for item in node.all_input_nodes for value in _tensors(item.meta.get("val"))]
    # Later results, such as the statistics of a norm, are small and for backward.
    results = _tensors(node.meta.get("val"))[:1]
    written = {_FORMATS[v.dtype] for v in results if v.dtype in _FORMATS}
    if role in ("input", "cast"):
        read = {_FORMATS[v.dtype] for v in operands if v.dtype in _FORMATS}
        return ("f32" if role == "cast" else ""), read, written
    computes = _widest(operands) or _widest(results)
    read = {
        _FORMATS[_dtype(item)] for item in map(_stored, node.all_input_nodes) if _is_float(item)
    }
    users = [user for user in _users(node) if user.op == "call_function"]
    if written == {"f32"} and users and all(is_cast(user) for user in users):
        narrow = {_dtype(user) for user in users}
        written = {_FORMATS[dtype] for dtype in narrow if dtype in _FORMATS}
    return computes, read, written


def _widest(values: list[torch.Tensor]) -> str:
    """Return the widest of the three formats; single numbers count only if there is nothing else.

    A scale or a mean over all elements is one number, independent of the op's format.
    """
    wide = [v for v in values if v.dtype in _FORMATS and v.dim() > 0] or [
        v for v in values if v.dtype in _FORMATS
    ]
    return max((_FORMATS[v.dtype] for v in wide), key=("f16", "bf16", "f32").index, default="")


def _stored(node: fx.Node) -> fx.Node:
    return source_of(node) if widens(node) else node


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read a node's first result."""
    if not isinstance(node.meta.get("val"), list | tuple):
        return list(node.users)
    return [user for item in node.users if item.args[1:] == (0,) for user in item.users]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in _FORMATS and value.dim() > 0


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _tensors(value: object) -> list[torch.Tensor]:
    values = value if isinstance(value, list | tuple) else (value,)
    return [item for item in values if isinstance(item, torch.Tensor)]


def _type(value: object) -> str:
    first, *others = _tensors(value) or (value,)
    return f"{type_text(first)} and {len(others)} more" if others else type_text(first)
