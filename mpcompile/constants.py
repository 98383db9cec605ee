"""Numbers in a program that FP16 cannot hold: found with no data, each with its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import fx

from mpcompile.border_rows import is_full
from mpcompile.dataflow import Where
from mpcompile.precision import Precision
from mpcompile.rules import TORCH_RULES, UNKNOWN, PrecisionClass
from mpcompile.torch_graph import place_of
from mpcompile.torch_private import number_arguments, op_name

_LARGEST = 65504.0
_SMALLEST = 2.0**-25
"""Half of the smallest FP16 number: what is not above it rounds to zero."""


@dataclass(frozen=True, slots=True)
class UnfitConstant:
    """A constant that does not survive in FP16.

    Attributes:
        op: the node that uses it.
        kind: the op's name.
        value: the constant; of a buffer its largest magnitude.
        what: what would become of it.
        fix: what to write instead.
        where: its place in the user's program.
    """

    op: str
    kind: str
    value: float
    what: str
    fix: str
    where: Where

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def unfit_constants(
    module: fx.GraphModule, buffers: Mapping[str, torch.Tensor], precision: Precision
) -> tuple[UnfitConstant, ...]:
    """Return the constants of a forward graph that do not fit, in graph order.

    BF16 has the range of FP32, so nothing is unfit for it. An infinite constant is meant as one.

    Args:
        module: an FP32 graph with ``meta["val"]`` on its nodes.
        buffers: per placeholder the tensor it stands for, if that never changes.
        precision: the 16-bit format.
    """
    if precision is not Precision.FP16:
        return ()
    unfit = {name: value for name, tensor in buffers.items() if (value := _of_buffer(tensor))}
    found: list[UnfitConstant] = []
    for node in module.graph.nodes:
        if node.op != "call_function" or not is_full(node) or _computes_in_fp32(node):
            continue
        numbers = [number for number in number_arguments(node) if _is_unfit(number)]
        if op_name(node).startswith("clamp"):  # a bound that no FP16 number passes does nothing
            numbers = [number for number in numbers if abs(number) < 1]
        used: list[tuple[float, str]] = [(number, "") for number in numbers]
        used += [(unfit[i.name], i.name) for i in node.all_input_nodes if i.name in unfit]
        if used:
            what, fix = _sentence(*used[0])
            kind, where = op_name(node), place_of(node)
            found.append(UnfitConstant(node.name, kind, used[0][0], what, fix, where))
    return tuple(found)


def _computes_in_fp32(node: fx.Node) -> bool:
    rule = TORCH_RULES.get(op_name(node), UNKNOWN)
    return rule.precision_class in (PrecisionClass.REDUCTION, PrecisionClass.WIDE) or (
        rule is UNKNOWN
    )


def _is_unfit(value: float) -> bool:
    return isfinite(value) and (abs(value) > _LARGEST or 0 < abs(value) <= _SMALLEST)


def _of_buffer(tensor: torch.Tensor) -> float:
    """Return a buffer's largest finite magnitude if FP16 cannot hold it, else 0."""
    if tensor.dtype is not torch.float32 or tensor.numel() == 0:
        return 0.0
    finite = tensor.detach().abs()
    largest = float(torch.where(torch.isfinite(finite), finite, 0.0).max())
    return largest if largest > _LARGEST else 0.0


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
