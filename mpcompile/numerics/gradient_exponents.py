"""The exponents of the gradients that FP16 would store, and the loss scale that fits them.

After Figure 3 and section 3.2 of Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import fx

from mpcompile.plan.dataflow import Where
from mpcompile.plan.plan import Plan
from mpcompile.plan.ranges import NORMAL, Range, Ranges
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, InputKind, source_position
from mpcompile.torch_private.ops import is_view

TOP = 15
"""Exponent of the largest FP16 number, 65504."""
MOST = 0.5
"""A gradient underflows if more than this share of its numbers is lost."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of the unscaled loss with respect to one tensor.

    Attributes:
        tensor: the node of the forward graph.
        name: the name of the parameter, or of the node.
        weight: whether the tensor is a parameter; if not, it is an activation.
        where: the source position that makes the tensor, or first reads the parameter.
        held: the range of the gradient over all batches.
    """

    tensor: str
    name: str
    weight: bool
    where: Where
    held: Range


@dataclass(frozen=True, slots=True)
class Underflow:
    """A gradient at which backward begins to underflow.

    Attributes:
        gradient: it loses more than `MOST`; the gradients that it is computed from lose less.
        reader: the op whose backward makes it.
        where: the op's source position.
    """

    gradient: Gradient
    reader: str
    where: Where


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses that FP16 causes in gradients times a scale.

    Shares are of the numbers other than zero. Numbers are counted by powers of two, so `above`
    leaves out numbers between 65504 and 65536; `overflows` includes them. If the scale is not a
    power of two, it is rounded up to one for `above`, and down for the other shares.

    Attributes:
        scale: the loss scale.
        lost: share below the smallest FP16 number, 2^-24.
        subnormal: share from 2^-24 to the smallest normal number, 2^-14: stored with fewer digits.
        above: share of 65536 and more, with infinities and NaN.
        overflows: whether the largest finite number is beyond 65504.
    """

    scale: float
    lost: float
    subnormal: float
    above: float
    overflows: bool


def gradients_in_fp16(forward: Forward, plan: Plan, ranges: Ranges) -> tuple[Gradient, ...]:
    """Return the gradients that backward stores in FP16 under a plan, in graph order.

    These are the gradients by tensors that are stored in FP16 or have a copy in FP16, such as the
    working copy of a weight. The gradient by the loss is the scale, in FP32. All gradients between
    the loss and the first tensor in FP16 are in FP32 too. Views are left out: the gradient of a
    view is that of its base tensor.
    """
    return tuple(
        found
        for found in _all(forward, ranges)
        if Precision.FP16 in plan.storage.get(found.tensor, ())
    )


def joined(gradients: Iterable[Gradient]) -> Range:
    """Return the range of several gradients together; for no gradients an empty range."""
    return reduce(Range.joined, (found.held for found in gradients), Range(0.0, 0, 0, 0, ()))


def losses(held: Range, scale: float) -> Losses:
    """Return the losses that FP16 causes in gradients times a scale above 0."""
    bits = math.log2(scale)
    lost = held.share_lost(scale)
    return Losses(
        scale=scale,
        lost=lost,
        subnormal=held.share_below(NORMAL - bits) - lost,
        above=1.0 - held.share_below(TOP + 1 - bits) if held.count > held.zeros else 0.0,
        overflows=held.largest_finite * scale > Precision.FP16.largest,
    )


def most_lost(gradients: Sequence[Gradient], scale: float) -> list[Gradient]:
    """Return gradients that lose numbers, with or without a scale; the largest loss comes first."""
    found = [item for item in gradients if item.held.share_below_smallest]
    return sorted(
        found, key=lambda item: (-item.held.share_lost(scale), -item.held.share_below_smallest)
    )


def underflows(forward: Forward, ranges: Ranges, scale: float = 1.0) -> tuple[Underflow, ...]:
    """Return the gradients at which underflow begins under a scale, in graph order.

    It may begin at the gradient by a tensor that stays in FP32: if its numbers are small, so are
    the numbers that backward computes from it.
    """
    nodes = {node.name: node for node in forward.module.graph.nodes}
    everything = {name for name, held in ranges.gradients.items() if held.share_lost(scale) > MOST}
    found = []
    for gradient in _all(forward, ranges):
        readers = [
            reader for reader in _readers(nodes[gradient.tensor]) if reader.name in ranges.gradients
        ]
        began_here = readers and not any(reader.name in everything for reader in readers)
        if gradient.tensor in everything and began_here:
            found.append(Underflow(gradient, readers[0].name, source_position(readers[0])))
    return tuple(found)


def _all(forward: Forward, ranges: Ranges) -> list[Gradient]:
    names = {item.node: item.name for item in forward.inputs if item.kind is InputKind.PARAMETER}
    found = []
    for node in forward.module.graph.nodes:
        if node.name not in ranges.gradients or _shows(node):
            continue
        weight = node.name in names
        name = names.get(node.name, node.name)
        held = ranges.gradients[node.name]
        found.append(Gradient(node.name, name, weight, _source_position(node), held))
    return found


def _shows(node: fx.Node) -> bool:
    """Whether a node is a view, or an item of an op's results that is one."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return is_view(node.args[0])
    return is_view(node)


def _source_position(node: fx.Node) -> Where:
    if node.op == "call_function":
        return source_position(node)
    return next(
        (source_position(user) for user in node.users if user.op == "call_function"), Where()
    )


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return the ops that read a tensor directly or through views."""
    found: list[fx.Node] = []
    for user in node.users:
        several = isinstance(user.meta.get("val"), tuple | list)  # its users read the items
        found += _readers(user) if _shows(user) or several else [user]
    return found
