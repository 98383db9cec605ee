"""Numbers in a program that FP16 cannot hold: found without data, each with its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import fx

from mpcompile.plan.dataflow import Where
from mpcompile.plan.growth import BOUNDED
from mpcompile.plan.op_table import TORCH_RULES, UNKNOWN
from mpcompile.plan.rule import PrecisionClass, Rule
from mpcompile.precision import Precision
from mpcompile.program.capture import source_position
from mpcompile.program.control_flow import nest_of
from mpcompile.program.node_tensors import is_full
from mpcompile.torch_private.ops import arguments_of, number_arguments, op_name

_LARGEST = 65504.0
_SMALLEST = 2.0**-25
"""Half of the smallest FP16 number: numbers not above it round to zero."""

# A bound outside the range of FP16 has no effect.
_UPPER = frozenset(
    {("clamp", "max"), ("clip", "max"), ("clamp_max", "max"), ("hardtanh", "max_val")}
)
_LOWER = frozenset(
    {("clamp", "min"), ("clip", "min"), ("clamp_min", "min"), ("hardtanh", "min_val")}
)
# Declared like a dropout's probability, but the result may hold these numbers.
_VALUES = {"pad": ("value",), "nan_to_num": ("nan", "posinf", "neginf")}
# Ops whose result does not keep a very negative input.
_DROPS_NEGATIVE = frozenset(
    "exp exp2 expm1 special_expm1 max amax maximum relu elu celu selu gelu silu mish softplus "
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool1d "
    "adaptive_max_pool2d".split()
)


@dataclass(frozen=True, slots=True)
class UnfitConstant:
    """A constant that does not survive in FP16.

    Attributes:
        op: the node that uses it.
        kind: the op's name.
        value: the constant; for a buffer, its number of the largest magnitude.
        what: the effect of FP16 on it, as a sentence.
        fix: the code to write instead.
        where: its position in the user's program.
        buffer: the placeholder of the buffer that holds it, or "".
    """

    op: str
    kind: str
    value: float
    what: str
    fix: str
    where: Where
    buffer: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def unfit_constants(
    module: fx.GraphModule, buffers: Mapping[str, torch.Tensor], precision: Precision
) -> tuple[UnfitConstant, ...]:
    """Return the constants of a forward graph that do not fit, in graph order.

    An op has at most one, the first. BF16 has the range of FP32, so every constant fits it. An
    infinite constant is intended and fits. Inner graphs are searched too, but not for buffers that
    they get as inputs.

    Args:
        module: an FP32 graph with ``meta["val"]`` on its nodes.
        buffers: per placeholder the tensor it stands for, if that never changes.
        precision: the 16-bit format.
    """
    if precision is not Precision.FP16:
        return ()
    unfit = {name: value for name, tensor in buffers.items() if (value := _of_buffer(tensor))}
    found: list[UnfitConstant] = []
    for node, op in nest_of(module).nodes.items():
        if node.op != "call_function" or _computes_in_fp32(node):
            continue
        used: list[tuple[float, str]] = [(number, "") for number in _numbers(node)]
        if is_full(node):
            used += [(unfit[i.name], i.name) for i in node.all_input_nodes if i.name in unfit]
        if used:
            what, fix = _sentence(*used[0])
            kind, where = op_name(node), source_position(node)
            found.append(UnfitConstant(op, kind, used[0][0], what, fix, where, used[0][1]))
    return tuple(found)


def unfit_reasons(module: fx.GraphModule, constants: tuple[UnfitConstant, ...]) -> dict[str, str]:
    """Return per op why it must not compute in 16 bits: its constant, or one that reaches it.

    Args:
        module: the graph.
        constants: the constants found in it.
    """
    return {
        op: str(constant)
        if constant.op == op
        else f"it reads what comes from {constant.op}, where {constant}"
        for op, constant in unfit_causes(module, constants).items()
    }


def unfit_causes(
    module: fx.GraphModule, constants: tuple[UnfitConstant, ...]
) -> dict[str, UnfitConstant]:
    """Return the constant of each op that must not compute in 16 bits, or the one that reaches it.

    A Tensor-Core op would read infinities if its input depends on a constant beyond FP16's range.
    The mask of an attention op is an exception: there negative infinity means the same as the
    number.

    Args:
        module: the graph.
        constants: the constants found in it.
    """
    held = {item.op: item for item in constants}
    buffers = {item.buffer: item for item in constants if abs(item.value) > _LARGEST}
    causes: dict[str, UnfitConstant] = {}
    reach: dict[fx.Node, UnfitConstant] = {}
    for node, op in nest_of(module).nodes.items():
        if node.op == "placeholder" and op in buffers:
            reach[node] = buffers[op]
        own = held.get(op)
        carried = next((reach[i] for i in node.all_input_nodes if i in reach), None)
        if _rule(node).precision_class is PrecisionClass.TENSOR_CORE:
            constant = own or carried
            if constant is not None and not _is_mask_of(node, constant, reach):
                causes[op] = constant
            continue
        if own is not None:
            causes[op] = own
        large = own if own is not None and abs(own.value) > _LARGEST else carried
        ends = op_name(node) in BOUNDED or (
            large is not None and large.value < 0 and op_name(node) in _DROPS_NEGATIVE
        )
        holds = is_full(node) or isinstance(node.meta.get("val"), tuple | list)
        if large is not None and holds and not ends:
            reach[node] = large
    return causes


def _is_mask_of(
    node: fx.Node, constant: UnfitConstant, reach: Mapping[fx.Node, UnfitConstant]
) -> bool:
    if _rule(node).name != "attention" or constant.value > 0:
        return False
    return all(
        name in ("attn_mask", "attn_bias") or value not in reach
        for name, value in arguments_of(node).items()
    )


def _rule(node: fx.Node) -> Rule:
    return TORCH_RULES.get(op_name(node), UNKNOWN)


def _computes_in_fp32(node: fx.Node) -> bool:
    rule = _rule(node)
    return rule.precision_class in (PrecisionClass.REDUCTION, PrecisionClass.WIDE) or (
        rule is UNKNOWN
    )


def _numbers(node: fx.Node) -> list[float]:
    """Return the numbers among an op's operands that FP16 cannot hold.

    A Tensor Core takes its factors in FP32. A comparison with a number beyond FP16's range has the
    same result; a comparison with a number too small for FP16 has not.
    """
    kind, rule = op_name(node), _rule(node)
    compares = rule.name == "comparison" and any(is_full(item) for item in node.all_input_nodes)
    if rule.precision_class is PrecisionClass.TENSOR_CORE or not (is_full(node) or compares):
        return []
    return [
        number
        for name, number in number_arguments(node, _VALUES.get(kind, ())).items()
        if is_unfit(number)
        and not (number > _LARGEST and (kind, name) in _UPPER)
        and not (number < -_LARGEST and (kind, name) in _LOWER)
        and not (compares and abs(number) > _LARGEST)
    ]


def is_unfit(value: float) -> bool:
    """Whether a finite number becomes infinity or zero in FP16."""
    return isfinite(value) and (abs(value) > _LARGEST or 0 < abs(value) <= _SMALLEST)


def _of_buffer(tensor: torch.Tensor) -> float:
    """Return a buffer's finite number of the largest magnitude if FP16 cannot hold it, else 0."""
    if tensor.dtype is not torch.float32 or tensor.numel() == 0:
        return 0.0
    finite = torch.nan_to_num(tensor.detach(), nan=0.0, posinf=0.0, neginf=0.0)
    most = max(float(finite.max()), float(finite.min()), key=abs)
    return most if is_unfit(most) else 0.0


def _sentence(value: float, buffer: str) -> tuple[str, str]:
    holder = f"the buffer {buffer} holds {value:g}, which" if buffer else f"the constant {value:g}"
    if abs(value) > _LARGEST:
        sign = "-" if value < 0 else ""
        return (
            f"{holder} becomes {sign}inf in FP16",
            f"use float('{sign}inf') if it masks, or torch.finfo(torch.float16)."
            f"{'min' if sign else 'max'}",
        )
    return f"{holder} becomes 0 in FP16", "use 1e-6 or more, or keep what it guards in FP32"
