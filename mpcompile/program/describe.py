"""Describe a forward graph, and the graphs inside it, to the planner."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from types import MappingProxyType

import torch
from torch import fx

from mpcompile.plan.bounds.bound import NOTHING
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor, Where
from mpcompile.plan.digits import keep_digits
from mpcompile.plan.needs import settled
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.policy import Policy, Resolution, Row, resolve
from mpcompile.plan.rule import PrecisionClass, Rule, Sensitivity, Wish
from mpcompile.plan.weight_terms import keep_weight_terms
from mpcompile.program.asked_wide import asked_wide
from mpcompile.program.border_rows import border_row, border_rule
from mpcompile.program.capture import source_position
from mpcompile.program.control_flow import Nest, nest_of
from mpcompile.program.derivatives.own_backward import OwnBackward
from mpcompile.program.needs import NEEDS, Facts
from mpcompile.program.node_tensors import count_of, is_full, is_size
from mpcompile.program.value_rows.steps import tensor_bounds
from mpcompile.torch_private.ops import arguments_of, is_view, op_name

_UNTRACED = Sensitivity.UNKNOWN
_OWN = Rule(
    "own backward",
    "own_backward",
    "",
    PrecisionClass.TRANSPARENT,
    "",
    True,
    "passes values on; the program computes the gradient",
)


def dataflow(
    module: fx.GraphModule,
    fixed: Mapping[str, Fixed],
    policy: Policy,
    unfit: Mapping[str, str] = MappingProxyType({}),
    constants: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Dataflow:
    """Return the neutral graph.

    Args:
        module: FP32 graph with ``meta["val"]`` on every node.
        fixed: placeholder name to its kind.
        policy: gives each op its wish.
        unfit: per node why FP16 cannot hold a number that it computes with.
        constants: the buffers that forward never writes, by placeholder.
    """
    nest = nest_of(module)
    ids = nest.nodes
    bounds = tensor_bounds(nest, fixed, constants, policy.precision)
    resolution = _resolve(nest, fixed, policy)
    ops: list[Op] = []
    tensors: list[Tensor] = []
    fixed = dict(fixed)
    wide = asked_wide(module)
    outputs = set(module.graph.output_node().all_input_nodes)

    for node, inner in nest.visited():
        for border in nest.borders.get(node, ()):
            if row := border_row(border, ids, inner.rounds, resolution, source_position(node)):
                ops.append(row[0])
                tensors.extend(row[1])
        if _computes(node, nest):
            told = resolution.wishes[ids[node]]
            if node in wide and ids[node] not in resolution.overridden:
                told = told[0], Wish.FULL, wide[node]
            op = _op(node, ids, told)
            ops.append(
                replace(
                    op,
                    overridden=op.id in resolution.overridden,
                    unfit=unfit.get(op.id, ""),
                    where=_position(node, inner.caller),
                )
            )
            fixed.update(
                (ids[item], Fixed.STATISTIC)
                for item in _results(node)
                if ids[item] not in op.writes
            )
        if is_full(node):
            tensors.append(
                Tensor(
                    id=ids[node],
                    elements=ceil(count_of(node.meta["val"]) * inner.rounds),
                    fixed=fixed.get(ids[node]),
                    output=node in outputs,
                    bound=bounds.get(ids[node], NOTHING),
                )
            )
    flow = keep_weight_terms(Dataflow(tuple(ops), tuple(tensors)))
    return keep_digits(flow, policy)


def _computes(node: fx.Node, nest: Nest) -> bool:
    called = node.op == "call_function" and node.target is not operator.getitem
    return called and not is_size(node) and node not in nest.borders


def _position(node: fx.Node, calling: fx.Node | None) -> Where:
    """Return a node's source position, or the caller's if its graph has no source lines."""
    where, caller = (
        source_position(node),
        source_position(calling) if calling is not None else Where(),
    )
    return where if where.file else replace(caller, module=where.module or caller.module)


def _resolve(nest: Nest, fixed: Mapping[str, Fixed], policy: Policy) -> Resolution:
    """Return the wish for each op and border; warn of overrides that match none."""
    rules = {
        **TORCH_RULES,
        _OWN.torch: _OWN,
        **{op_name(node): border_rule(op_name(node)) for node in nest.borders},
    }

    def rows() -> Iterator[Row]:
        for node, inner in nest.visited():
            for border in nest.borders.get(node, ()):
                for name in border.ids:
                    yield Row(name, op_name(node), source_position(node).module)
            if _computes(node, nest):
                module = _position(node, inner.caller).module
                yield Row(nest.nodes[node], op_name(node), module, _is_residual(node, fixed))

    resolution = resolve(policy, rules, rows())
    resolution.warn()
    return resolution


def _is_residual(node: fx.Node, fixed: Mapping[str, Fixed]) -> bool:
    """Whether the node adds two activations: no parameter, no buffer, nothing broadcast."""
    parts = node.args[:2]
    if op_name(node) != "add" or not is_full(node):
        return False
    for part in parts:
        if not (isinstance(part, fx.Node) and is_full(part)):
            return False
        if count_of(part.meta["val"]) != count_of(node.meta["val"]):
            return False
        while part.op == "call_function" and is_view(part):
            part = part.all_input_nodes[0]
        if fixed.get(part.name) in (Fixed.PARAMETER, Fixed.BUFFER):
            return False
    return any(isinstance(part, fx.Node) and part.op == "call_function" for part in parts)


def _op(node: fx.Node, ids: dict[fx.Node, str], told: tuple[Rule, Wish, str]) -> Op:
    rule, wish, _ = told
    results = _results(node)
    inside = rule.inside and wish is not Wish.HALF
    if inside and results and isinstance(node.meta["val"], tuple | list):
        results = [item for item in results if item.args[1] == 0]  # the others are statistics
    writes = tuple(ids[result] for result in results)
    own = isinstance(node.target, OwnBackward)
    # Backward reads the other tensors of such a node, in whatever precision they are stored.
    inputs: list[fx.Node] = list(node.args[0]) if own else node.all_input_nodes  # type: ignore[arg-type]
    reads = tuple(ids[item] for item in inputs if is_full(item))
    largest = max((count_of(result.meta["val"]) for result in results), default=0)
    sensitivity = _UNTRACED if reads and _leaves(node, rule) else rule.sensitivity
    facts = Facts(reads, writes, largest, inside and not rule.streams)
    rule, wish, reason = settled(facts, told, NEEDS)
    saves = rule.saves.split()
    wide = rule.full_arguments.split()
    return Op(
        id=ids[node],
        kind=op_name(node),
        rule=rule.name,
        wish=wish,
        inside=inside,
        streams=rule.streams or rule.gathers,
        reason=reason,
        reads=reads,
        writes=writes,
        keeps=(*(reads if "in" in saves else ()), *(writes if "out" in saves else ())),
        full_reads=tuple(
            ids[item]
            for argument, item in (arguments_of(node).items() if wide else ())
            if argument in wide and ids[item] in reads
        ),
        gathers=rule.gathers,
        view=own or is_view(node),
        sensitivity=sensitivity,
    )


def _leaves(node: fx.Node, rule: Rule) -> bool:
    """Whether a harmless op makes a tensor in which the plan cannot follow what its readers need.

    Complex tensors and FP64 are such tensors.
    """
    value = node.meta.get("val")
    if rule.sensitivity is not Sensitivity.HARMLESS or not isinstance(value, torch.Tensor):
        return False
    return value.dtype.is_complex or value.dtype is torch.float64


def _results(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that hold an op's FP32 results."""
    single = isinstance(node.meta.get("val"), torch.Tensor)
    return [item for item in ([node] if single else node.users) if is_full(item)]
