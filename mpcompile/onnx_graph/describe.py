"""Describe an ONNX graph, and the graphs inside it, to the planner.

Every op is a kernel of its own and none is fused with another, so all that it reads and writes is
in memory, and a cast is a kernel too. An initializer is an op without inputs that takes either
precision: its narrow copy is made once, in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import onnx_ir as ir

from mpcompile.onnx_graph.constants import mask_constants
from mpcompile.onnx_graph.masks import factors_of_masks
from mpcompile.onnx_graph.needs import (
    BORDER_NEEDS,
    CONSTANT,
    NEEDS,
    SOURCE_NEEDS,
    BorderFacts,
    Facts,
)
from mpcompile.onnx_graph.nest import Border, Nest
from mpcompile.onnx_graph.signatures import signature
from mpcompile.onnx_graph.value_rows import value_bounds
from mpcompile.onnx_graph.values import elements_of, is_full, is_known, is_left_out, is_standard
from mpcompile.plan.bounds.bound import NOTHING
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor, Where
from mpcompile.plan.digits import keep_digits
from mpcompile.plan.needs import settled
from mpcompile.plan.nest import BorderKind, Inner
from mpcompile.plan.op_table import ONNX_RULES
from mpcompile.plan.policy import Policy, Row, resolve
from mpcompile.plan.rule import PrecisionClass, Rule, Wish
from mpcompile.precision import Precision

INITIALIZER, INPUT = "Initializer", "Input"
"""Kinds of ops that represent the initializers and inputs of a graph."""

_VIEWS = frozenset("Identity Reshape Squeeze Unsqueeze Flatten".split())
_SCOPES = ("pkg.torch.onnx.name_scopes", "namespace")


@dataclass(frozen=True, slots=True)
class Wants:
    """Facts that decide in addition to the policy.

    Attributes:
        precision: the 16-bit format.
        lacks: per node id, why no kernel of the node takes the format.
        unfit: per node or initializer id, why the format cannot hold its constants.
        keep_io: whether inputs and outputs of the graph keep their dtypes.
    """

    precision: Precision
    lacks: Mapping[str, str]
    unfit: Mapping[str, str]
    keep_io: bool


def dataflow(nest: Nest, opset: int, policy: Policy, wants: Wants) -> Dataflow:
    """Return the neutral graph.

    Args:
        nest: the model's graph, types inferred.
        opset: the version of ONNX's op set that the model imports.
        policy: gives each op its wish.
        wants: the facts besides the policy that decide.
    """
    describer = _Describer(nest, opset, policy, wants)
    describer.visit()
    flow = Dataflow(tuple(describer.ops), tuple(describer.tensors.values()))
    return keep_digits(flow, policy)


class _Describer:
    def __init__(self, nest: Nest, opset: int, policy: Policy, wants: Wants) -> None:
        self.nest, self.opset, self.wants = nest, opset, wants
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.outputs = set(nest.inners[0].graph.outputs) if wants.keep_io else set()
        self.bounds = value_bounds(nest, wants.precision)
        self.factors = factors_of_masks(mask_constants(nest))
        self.resolution = resolve(policy, _rules(nest), _rows(nest))
        self.resolution.warn()

    def visit(self) -> None:
        """Describe all graphs, each beginning with its initializers and inputs."""
        whole = self.nest.inners[0]
        for inner in self.nest.inners:
            for value in inner.graph.initializers.values():
                if is_full(value):
                    self._source(value, INITIALIZER, inner)
        for value in whole.graph.inputs:
            if is_full(value) and self.nest.values[value] not in self.tensors:
                self._source(value, INPUT, whole)
        for node, inner in self.nest.visited():
            for border in self.nest.borders.get(node, ()):
                self._border(border, inner)
            if node not in self.nest.borders:
                self._op(node, inner)

    def _tensor(
        self, value: ir.Value, inner: Inner[ir.Graph, ir.Node], fixed: Fixed | None = None
    ) -> str:
        name = self.nest.values[value]
        count = ceil(elements_of(value) * inner.rounds)
        bound = self.bounds.get(name, NOTHING)
        self.tensors[name] = Tensor(
            name, count, fixed, value in self.outputs, fits=value in self.factors, bound=bound
        )
        return name

    def _source(self, value: ir.Value, kind: str, inner: Inner[ir.Graph, ir.Node]) -> None:
        """Describe an initializer, or an input of the whole graph."""
        given = value in inner.graph.inputs
        fixed = Fixed.INPUT if given and self.wants.keep_io else None
        name = self._tensor(value, self.nest.inners[0], fixed)
        if fixed:
            return
        is_default = given and inner.caller is not None
        told = settled(is_default, self.resolution.wishes[name], SOURCE_NEEDS)
        self._add(name, kind, told, (), (name,), (), Where())

    def _op(self, node: ir.Node, inner: Inner[ir.Graph, ir.Node]) -> None:
        name = self.nest.nodes[node]
        values = [value for value in node.inputs if is_full(value)]
        made = [value for value in node.outputs if is_full(value)]
        if not values and not made:
            return
        narrow, lacks = self._narrow(node)
        ids = self.nest.values
        statistics = [value for value in made if value not in narrow]
        for value in made:
            self._tensor(value, inner, Fixed.STATISTIC if value in statistics else None)
        reads = tuple(dict.fromkeys(ids[value] for value in values if value is not None))
        writes = tuple(ids[value] for value in made if value in narrow)
        told = self.resolution.wishes[name]
        overridden = name in self.resolution.overridden
        told = settled(Facts(node, told[0], reads, writes, lacks, overridden), told, NEEDS)
        full = tuple(dict.fromkeys(ids[v] for v in values if v is not None and v not in narrow))
        view = node.op_type in _VIEWS and is_standard(node)
        where = Where(scope_of(node))
        self._add(name, node.op_type, told, reads, writes, full, where, view=view)

    def _narrow(self, node: ir.Node) -> tuple[set[ir.Value], str]:
        """Return the FP32 values of a node that change together, and why they may not change."""
        everything = {v for v in _around(node) if v is not None and is_full(v)}
        if not all(is_known(value) for value in _around(node)):
            return everything, "the types of its tensors are unknown"
        if not is_standard(node):
            return everything, f"an op of the domain {node.domain}"
        found = signature(node.op_type, node.domain, self.opset)
        if found is None:
            return everything, f"ONNX knows no {node.op_type} in op set {self.opset}"
        inputs = [(found.input(k), v) for k, v in enumerate(node.inputs) if is_full(v)]
        outputs = [(found.output(k), v) for k, v in enumerate(node.outputs) if is_full(v)]
        if any(v is not None and not isinstance(v.type, ir.TensorType) for v in _around(node)):
            return everything, "it reads or makes a sequence, whose tensors do not change"
        if found.chosen:
            return everything, "an attribute sets the dtype of its result"
        variable = (outputs or inputs)[0][0]
        narrow = {v for name, v in (*inputs, *outputs) if name == variable and v is not None}
        if any(v in narrow for name, v in (*inputs, *outputs) if name != variable):
            return narrow, "it reads one tensor for two type variables"
        precision = self.wants.precision
        if not found.takes(variable, precision):
            return narrow, f"ONNX allows no {precision.short} for it in op set {self.opset}"
        return narrow, self.wants.lacks.get(self.nest.nodes[node], "")

    def _border(self, border: Border, inner: Inner[ir.Graph, ir.Node]) -> None:
        values = [use.value for use in border.reads] + list(border.writes)
        full = [value for value in values if is_full(value)]
        if not full:
            return
        for value in border.writes:
            if is_full(value):
                body = next((i for i in self.nest.inners if value in i.graph.inputs), inner)
                self._tensor(value, body)
        together = len(full) == len(values) and border.kind is not BorderKind.CROSSING
        facts = BorderFacts(together, self._lacks_crossing(border.caller))
        told = settled(facts, self.resolution.wishes[border.id], BORDER_NEEDS)
        ids = self.nest.values
        reads = tuple(dict.fromkeys(ids[u.value] for u in border.reads if is_full(u.value)))  # type: ignore[index]
        writes = tuple(ids[value] for value in border.writes if is_full(value))
        view = border.kind.shares_memory
        kind = f"{border.caller.op_type} {border.kind.value}"
        where = Where(scope_of(border.caller))
        self._add(border.id, kind, told, reads, writes, (), where, border=view)

    def _lacks_crossing(self, caller: ir.Node) -> str:
        """Return why values that enter or leave a node's graphs may not have the format, or ""."""
        found = signature(caller.op_type, caller.domain, self.opset)
        if found is not None and found.holds(found.output(0), self.wants.precision):
            return ""
        short = self.wants.precision.short
        return f"ONNX allows no {short} for {caller.op_type} in op set {self.opset}"

    def _add(
        self,
        name: str,
        kind: str,
        told: tuple[Rule, Wish, str],
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        full_reads: tuple[str, ...],
        where: Where,
        view: bool = False,
        border: bool = False,
    ) -> None:
        rule, wish, reason = told
        self.ops.append(
            Op(
                id=name,
                kind=kind,
                rule=rule.name,
                wish=wish,
                inside=wish is Wish.FULL and rule.inside,
                streams=view,
                reason=reason,
                reads=reads,
                writes=writes,
                full_reads=full_reads,
                view=view or border,
                unfit=self.wants.unfit.get(name, ""),
                overridden=name in self.resolution.overridden,
                sensitivity=self.resolution.wishes[name][0].sensitivity,
                where=where,
            )
        )


_STORED = Rule(
    "weight",
    "",
    "",
    PrecisionClass.TRANSPARENT,
    "",
    False,
    "stored in the precision that its readers want",
)
_CROSSES = Rule(
    "control flow",
    "",
    "",
    PrecisionClass.TRANSPARENT,
    "",
    False,
    "it crosses the border of a graph",
)


def _rules(nest: Nest) -> dict[str, Rule]:
    flow = {f"{node.op_type} flow": _CROSSES for node in nest.borders}
    return {**ONNX_RULES, INITIALIZER: _STORED, INPUT: _STORED, CONSTANT: _STORED, **flow}


def _rows(nest: Nest) -> list[Row]:
    rows: list[Row] = []
    for inner in nest.inners:
        rows += [
            Row(nest.values[value], INITIALIZER) for value in inner.graph.initializers.values()
        ]
    held = set(nest.inners[0].graph.initializers.values())
    rows += [Row(nest.values[v], INPUT) for v in nest.inners[0].graph.inputs if v not in held]
    for node, _ in nest.visited():
        scope = scope_of(node)
        for border in nest.borders.get(node, ()):
            rows.append(Row(border.id, f"{node.op_type} flow", scope))
        name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
        rows.append(Row(nest.nodes[node], name, scope, _is_residual(node)))
    return rows


def scope_of(node: ir.Node) -> str:
    """Return the dotted path of the module a node came from, as an exporter wrote it, or "".

    PyTorch's exporter writes it as metadata; older ones name the node ``/encoder/layer.0/MatMul``.
    """
    for key in _SCOPES:
        said = node.metadata_props.get(key)
        if said:
            parts = [part.strip(" '\"") for part in said.strip("[]").split(",")]
            return parts[-2] if len(parts) > 1 else ""
    path = (node.name or "").split("/")
    return ".".join(path[1:-1]) if len(path) > 2 and not path[0] else ""


def _around(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (*node.inputs, *(value for value in node.outputs if not is_left_out(value)))


def _is_residual(node: ir.Node) -> bool:
    """Return whether the node adds two activations of one shape."""
    if node.op_type != "Add" or not is_standard(node) or not is_full(node.outputs[0]):
        return False
    shapes = []
    for value in node.inputs:
        if value is None or value.is_initializer() or value.const_value is not None:
            return False
        shapes.append(value.shape)
    return shapes[0] is not None and shapes[0] == shapes[1]
