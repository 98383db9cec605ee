"""Capture and plan a PyTorch program, and return it as rows for the rules."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from mpcompile.errors import NotOneGraph
from mpcompile.lint.program import By, ConstantUse, Node, Program, decided_by
from mpcompile.lint.torch_sizes import lengths_of
from mpcompile.passes.forward.pad_vocabulary import PadVocabulary
from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.pieces.whole_plan import in_piece
from mpcompile.pipeline import describe, plan_of_pieces, transform
from mpcompile.plan.bounds.bound import NOTHING, Bound
from mpcompile.plan.dataflow import Dataflow, Fixed, Op
from mpcompile.plan.given import decide
from mpcompile.plan.growth import contain_growth
from mpcompile.plan.op_table import TORCH_RULES, UNKNOWN
from mpcompile.plan.plan import Decision, Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.plan.rule import Sensitivity, Wish
from mpcompile.plan.sensitivity import sensitive_readers
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, InputKind, capture, source_position
from mpcompile.program.control_flow import Nest, nest_of
from mpcompile.program.derivatives.own_backward import OwnBackward
from mpcompile.program.node_tensors import shape_of
from mpcompile.program.unfit_constants import UnfitConstant, is_unfit, unfit_causes, unfit_constants
from mpcompile.program.value_rows.steps import tensor_bounds
from mpcompile.program.workload import Workload, load
from mpcompile.step.transformed import Choices
from mpcompile.step.update_of_program import arena_positions, update_of
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import number_arguments, op_name

_DTYPES = {
    torch.float16: Precision.FP16,
    torch.bfloat16: Precision.BF16,
    torch.float32: Precision.FP32,
}
_SOURCES = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer", InputKind.BATCH: "batch"}
_MADE = frozenset(("constant", "random"))
_CLAMPS = frozenset(("clamp", "clip", "clamp_min", "clamp_max", "hardtanh"))
_PAD = "pad_vocabulary"
_OUTPUTS = "outputs"


def read_program(
    source: str,
    policy: Policy,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    without: Collection[str] = (),
) -> Program:
    """Load, capture and plan a program, and return its forward pass as rows.

    Args:
        source: a file or ``package.module:name``, which is executed.
        policy: which ops may run in 16 bits.
        plan: decisions that win over the policy.
        ranges: measured ranges.
        without: passes that are left out.

    Raises:
        BadInput, CannotCapture: see `mpcompile.compile`.
    """
    workload = load(source)
    try:
        forward = capture(workload)
    except NotOneGraph:
        if plan is not None or ranges is not None or workload.optimizer is None:
            raise
        return program_of_pieces(workload, policy)
    return program_of(workload, forward, policy, plan, ranges, without)


def program_of_pieces(workload: Workload, policy: Policy) -> Program:
    """Run a program once in pieces, and return the forward passes of these side by side.

    Rows of one piece do not read those of another. No pass pads a piece, and no row is known to be
    a part of the loss.
    """
    made = transform(workload, Choices(policy=policy, verify=False, whole=False))
    pieces = plan_of_pieces(made)
    assert pieces is not None
    nodes: list[Node] = []
    parts = zip(pieces.captured, pieces.flows, pieces.plans, strict=True)
    for index, (captured, flow, plan) in enumerate(parts):
        if captured is not None:
            unfit = unfit_constants(
                captured.forward.module, captured.forward.constants(), plan.precision
            )
            rows = _rows(captured.forward, captured.fixed, unfit, flow, plan)
            nodes += [_in_piece(node, in_piece(index)) for node in rows]
    return Program(workload.origin or "", "torch", policy.precision, tuple(nodes))


def _in_piece(node: Node, name: Callable[[str], str]) -> Node:
    reader = None if node.reader is None else (name(node.reader[0]), node.reader[1])
    return replace(node, id=name(node.id), reads=tuple(map(name, node.reads)), reader=reader)


def program_of(
    workload: Workload,
    forward: Forward,
    policy: Policy,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    without: Collection[str] = (),
) -> Program:
    """Plan a captured program, and return its forward pass as rows; see `read_program`."""
    precision = plan.precision if plan else policy.precision
    unfit = unfit_constants(forward.module, forward.constants(), precision)
    flow = describe(forward, policy, unfit)
    decided = decide(flow, policy.precision, plan, ranges)
    fixed = {item.node: item.kind.fixed for item in forward.inputs}
    nodes = _rows(forward, fixed, unfit, flow, decided, has_loss=workload.loss is not None)
    if any(_may_be_padded(node) for node in nodes) and _PAD not in without:
        padded = _padded(workload, forward, decided)
        nodes = [_with_padding(node) if node.id in padded else node for node in nodes]
    return Program(workload.origin or "", "torch", decided.precision, tuple(nodes))


def _rows(
    forward: Forward,
    fixed: Mapping[str, Fixed],
    unfit: tuple[UnfitConstant, ...],
    flow: Dataflow,
    plan: Plan,
    *,
    has_loss: bool = False,
) -> list[Node]:
    nest = nest_of(forward.module)
    reader = _Reader(
        forward,
        nest,
        has_loss,
        {op.id: op for op in flow.ops},
        {decision.op: decision for decision in plan.decisions},
        _constants(forward, unfit, flow, plan.precision),
        sensitive_readers(flow),
        tensor_bounds(nest, fixed, forward.constants(), plan.precision),
    )
    return reader.nodes()


@dataclass(frozen=True)
class _Reader:
    forward: Forward
    nest: Nest
    has_loss: bool
    ops: Mapping[str, Op]
    decisions: Mapping[str, Decision]
    constants: Mapping[str, ConstantUse]
    readers: Mapping[str, tuple[str, Sensitivity]]
    bounds: Mapping[str, Bound]

    def nodes(self) -> list[Node]:
        ids = self.nest.nodes
        sources = {item.node: _SOURCES[item.kind] for item in self.forward.inputs}
        return [
            self._source(node, name, sources.get(name, "batch"))
            if node.op == "placeholder"
            else self._op(node, name, ids)
            for node, name in ids.items()
            if node.op in ("placeholder", "call_function")
        ]

    def _source(self, node: fx.Node, name: str, op: str) -> Node:
        value = node.meta.get("val")
        shape = shape_of(value) if isinstance(value, torch.Tensor) else ()
        return Node(name, op, "source", shape=shape)

    def _op(self, node: fx.Node, name: str, ids: Mapping[fx.Node, str]) -> Node:
        kind = op_name(node)
        taken = node.target is operator.getitem or isinstance(node.target, OwnBackward)
        row = "movement" if taken else TORCH_RULES.get(kind, UNKNOWN).name
        computes, stores, by = self._precision(node, name, ids)
        found = lengths_of(node)
        value = _first(node)
        constant = self.constants.get(name) or _own_constant(node)
        # A tensor made of numbers alone is a constant for its readers.
        made = row in _MADE and not node.all_input_nodes
        return Node(
            name,
            "constant" if made and constant is None else kind,
            row,
            self.ops[name].where if name in self.ops else source_position(node),
            tuple(ids[item] for item in found.reads if item in ids),
            shape_of(value) if value is not None else (),
            computes,
            stores,
            by,
            constant,
            found.length,
            found.flops,
            found.sizes,
            self.has_loss and _is_in_loss(node),
            number_arguments(node).get("max") if kind in _CLAMPS else None,
            found.channels_last,
            self.readers.get(name),
            self.bounds.get(name, NOTHING),
        )

    def _precision(
        self, node: fx.Node, name: str, ids: Mapping[fx.Node, str]
    ) -> tuple[Precision | None, Precision | None, By]:
        decision, op = self.decisions.get(name), self.ops.get(name)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            decision = self.decisions.get(ids.get(node.args[0], ""))
        if decision is not None:
            return decision.computes, decision.stores, decided_by(decision, op)
        value = _first(node)
        dtype = _DTYPES.get(value.dtype) if value is not None else None
        if dtype in (Precision.FP16, Precision.BF16):
            return dtype, dtype, By.PROGRAM
        if name in self.constants:  # a comparison: its result is not a number
            wide = op is None or not op.overridden or op.wish is Wish.FULL
            return (Precision.FP32 if wide else Precision.FP16), None, By.USER
        return dtype, dtype, By.PLAN


def _constants(
    forward: Forward, unfit: tuple[UnfitConstant, ...], flow: Dataflow, precision: Precision
) -> dict[str, ConstantUse]:
    """Return per op the number FP16 cannot hold, with its effects."""
    if not unfit:
        return {}
    causes = unfit_causes(forward.module, unfit)
    costs = Counter(cause.op for op, cause in causes.items() if cause.op != op)
    bare = Dataflow(tuple(replace(op, unfit="") for op in flow.ops), flow.tensors)
    wide = {op.id for op in contain_growth(bare, precision).ops if op.wish is Wish.FULL}
    names = {item.node: f"the {item.kind.value} {item.name}" for item in forward.inputs}
    return {
        item.op: ConstantUse(
            item.value,
            names.get(item.buffer, item.buffer),
            needless=item.op in wide,
            costs=costs[item.op],
        )
        for item in unfit
    }


def _own_constant(node: fx.Node) -> ConstantUse | None:
    """Return a number that FP16 cannot hold in an op that the program itself runs in FP16."""
    value = _first(node)
    if value is None or value.dtype is not torch.float16 or op_name(node) in _CLAMPS:
        return None
    found = [number for number in number_arguments(node).values() if is_unfit(number)]
    return ConstantUse(found[0]) if found else None


def _first(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        value = next((item for item in value if isinstance(item, torch.Tensor)), None)
    return value if isinstance(value, torch.Tensor) else None


def _is_in_loss(node: fx.Node) -> bool:
    """Whether the loss function calls an op itself; ops of the model have the model's path."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return bool(paths) and not any(paths)


def _may_be_padded(node: Node) -> bool:
    return node.op == "linear" and node.narrow and any(s.count % 8 for s in node.sizes)


def _padded(workload: Workload, forward: Forward, plan: Plan) -> frozenset[str]:
    """Return the linears whose outputs `passes.pad_vocabulary` pads."""
    if workload.optimizer is None:
        return frozenset()
    cast = replace(forward, module=copy_graph(forward.module))
    run_passes(cast.module, forward_passes(plan), lambda module: module.graph.lint())
    _, update = update_of(workload, workload.optimizer, cast)
    rewrite = PadVocabulary(arena_positions(cast, update))
    return frozenset(node.name for node in cast.module.graph.nodes if rewrite.pads(node))


def _with_padding(node: Node) -> Node:
    sizes = tuple(replace(size, padded=size.name == _OUTPUTS) for size in node.sizes)
    return replace(node, sizes=sizes)
