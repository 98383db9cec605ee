"""Read and plan an ONNX model, and return it as rows for the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from mpcompile.lint.onnx_sizes import lengths_of, shape_of
from mpcompile.lint.program import By, ConstantUse, Node, Program, decided_by
from mpcompile.onnx.rewrite import given_model, prepare
from mpcompile.onnx_graph.constants import UnfitUse, largest_of, mask_constants, unfit_uses
from mpcompile.onnx_graph.describe import scope_of
from mpcompile.onnx_graph.kernels import Target
from mpcompile.onnx_graph.masks import MASK
from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.value_rows import value_bounds
from mpcompile.onnx_graph.values import constant_of, is_standard
from mpcompile.plan.bounds.bound import NOTHING, Bound
from mpcompile.plan.dataflow import Dataflow, Op, Where
from mpcompile.plan.given import decide
from mpcompile.plan.growth import contain_growth
from mpcompile.plan.op_table import ONNX_RULES, UNKNOWN
from mpcompile.plan.plan import Decision, Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.plan.rule import Sensitivity, Wish
from mpcompile.plan.sensitivity import sensitive_readers
from mpcompile.precision import Precision

_DTYPES = {
    ir.DataType.FLOAT16: Precision.FP16,
    ir.DataType.BFLOAT16: Precision.BF16,
    ir.DataType.FLOAT: Precision.FP32,
}
_TRACE = "pkg.torch.onnx.stack_trace"
_LIBRARIES = ("site-packages", "dist-packages")
_SCALAR = 1


def read_program(
    source: str,
    policy: Policy,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    without: Collection[str] = (),
) -> Program:
    """Read and plan an untrusted ``.onnx`` file, and return its rows.

    Args:
        source: path of the file.
        policy: which ops may run in 16 bits.
        plan: decisions that win over the policy.
        ranges: measured ranges.
        without: passes that are left out; none of them runs on ONNX models.

    Raises:
        BadInput: see `mpcompile.onnx.rewrite.rewrite`.
    """
    del without
    precision = plan.precision if plan else policy.precision
    prepared = prepare(given_model(source), policy, precision, Target.ANY)
    decided = decide(prepared.flow, policy.precision, plan, ranges)
    nest = prepared.nest
    reader = _Reader(
        nest,
        {op.id: op for op in prepared.flow.ops},
        {decision.op: decision for decision in decided.decisions},
        _constants(nest, prepared.flow, decided),
        {value: _maker(value, nest) for value in nest.values},
        sensitive_readers(prepared.flow),
        value_bounds(nest, precision),
    )
    return Program(source, "onnx", decided.precision, tuple(reader.nodes()))


@dataclass(frozen=True)
class _Reader:
    nest: Nest
    ops: Mapping[str, Op]
    decisions: Mapping[str, Decision]
    constants: Mapping[str, ConstantUse]
    makers: Mapping[ir.Value, str]
    readers: Mapping[str, tuple[str, Sensitivity]]
    bounds: Mapping[str, Bound]

    def nodes(self) -> list[Node]:
        found: list[Node] = []
        for inner in self.nest.inners:
            given = set(inner.graph.inputs)
            held = inner.graph.initializers.values()
            found += [self._source(v, "batch") for v in inner.graph.inputs]
            found += [self._source(v, _held(v)) for v in held if v not in given]
        return found + [self._op(node) for node, _ in self.nest.visited()]

    def _source(self, value: ir.Value, op: str) -> Node:
        return Node(self.makers[value], op, "source", shape=shape_of(value))

    def _op(self, node: ir.Node) -> Node:
        name = self.nest.nodes[node]
        row = (ONNX_RULES.get(node.op_type, UNKNOWN) if is_standard(node) else UNKNOWN).name
        found = lengths_of(node, row)
        computes, stores, by = self._precision(node, name)
        reads = tuple(self.makers[v] for v in node.inputs if v is not None and v in self.makers)
        return Node(
            name,
            "constant" if node.op_type == "Constant" else node.op_type,
            row,
            source_position(node),
            reads,
            shape_of(node.outputs[0]) if node.outputs else (),
            computes,
            stores,
            by,
            self.constants.get(name),
            found.length,
            found.flops,
            found.sizes,
            bound=_bound(node),
            reader=self.readers.get(name),
            known=self.bounds.get(self.nest.values[node.outputs[0]], NOTHING)
            if node.outputs
            else NOTHING,
        )

    def _precision(self, node: ir.Node, name: str) -> tuple[Precision | None, Precision | None, By]:
        decision, op = self.decisions.get(name), self.ops.get(name)
        if decision is not None:
            return decision.computes, decision.stores, decided_by(decision, op)
        dtypes = [_DTYPES.get(value.dtype) for value in node.outputs if value.dtype is not None]
        dtype = next((item for item in dtypes if item is not None), None)
        if dtype in (Precision.FP16, Precision.BF16):
            return dtype, dtype, By.PROGRAM
        return dtype, dtype, By.PLAN


def _maker(value: ir.Value, nest: Nest) -> str:
    """Return the id of the node that makes a value; else the value's own id, marked as such."""
    node = value.producer()
    return nest.nodes[node] if node in nest.nodes else f"value {nest.values[value]}"


def _held(value: ir.Value) -> str:
    tensor = value.const_value
    return "parameter" if tensor is not None and tensor.size > _SCALAR else "constant"


def _constants(nest: Nest, flow: Dataflow, plan: Plan) -> dict[str, ConstantUse]:
    """Return per node the number FP16 cannot hold, with its effects."""
    if plan.precision is not Precision.FP16:
        return {}
    uses = unfit_uses(nest, plan.precision)
    costs = Counter(use.source for name, use in uses.items() if use.source != name)
    bare = Dataflow(tuple(replace(op, unfit="") for op in flow.ops), flow.tensors)
    wide = {op.id for op in contain_growth(bare, plan.precision).ops if op.wish is Wish.FULL}
    found = {
        name: ConstantUse(use.number, _holder(use, nest), needless=name in wide, costs=costs[name])
        for name, use in uses.items()
        if use.source == name
    }
    for value in mask_constants(nest):
        tensor = constant_of(value)
        if tensor is None or Precision.FP16 not in plan.storage.get(nest.values[value], ()):
            continue
        for node, _ in value.uses():
            found[nest.nodes[node]] = ConstantUse(largest_of(tensor), becomes=MASK)
    return found


def _holder(use: UnfitUse, nest: Nest) -> str:
    tensor = constant_of(use.value)
    many = tensor is not None and tensor.size > _SCALAR
    return f"the weight {nest.values[use.value]}" if many else ""


def _bound(node: ir.Node) -> float | None:
    index = {"Clip": 2, "Min": 1}.get(node.op_type, 0)
    tensor = constant_of(node.inputs[index]) if 0 < index < len(node.inputs) else None
    single = tensor is not None and tensor.size == 1
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and single else None


def source_position(node: ir.Node) -> Where:
    """Return the module and the source line that an exporter wrote into a node."""
    file, line = "", 0
    for text in (node.metadata_props.get(_TRACE) or "").splitlines():
        text = text.strip()
        if text.startswith('File "'):
            path, _, rest = text[6:].partition('", line ')
            number = rest.partition(",")[0]
            if number.isdecimal() and not any(name in path for name in _LIBRARIES):
                file, line = path, int(number)
    return Where(scope_of(node), file, line)
