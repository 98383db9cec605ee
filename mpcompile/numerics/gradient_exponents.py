"""The gradients that FP16 would hold, by their exponents, and the loss scale that fits them.

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
from mpcompile.plan.ranges import HIGHEST, NORMAL, Range, Ranges
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, Kind, place_of
from mpcompile.torch_private.ops import is_view

HEADROOM_BITS = 2
"""How far below the largest FP16 number the largest gradient is kept."""
TOP = 15
"""Exponent of the largest FP16 number, 65504."""
MOST = 0.5
"""A gradient underflows if more than this share of its numbers is lost."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of the unscaled loss with respect to one tensor.

    Attributes:
        tensor: the node of the forward graph.
        name: of the parameter, or that of the node.
        weight: whether the tensor is a parameter; else it is an activation.
        where: where the tensor is made, or the parameter first read.
        held: what the gradient held over all batches.
    """

    tensor: str
    name: str
    weight: bool
    where: Where
    held: Range


@dataclass(frozen=True, slots=True)
class Underflow:
    """Where gradients begin to underflow on their way back.

    Attributes:
        gradient: more than `MOST` of it is lost, but not of the gradients it is computed from.
        reader: the op whose backward makes it.
        where: that op's place.
    """

    gradient: Gradient
    reader: str
    where: Where


@dataclass(frozen=True, slots=True)
class Losses:
    """What FP16 does to gradients times a scale.

    Shares are of the numbers other than zero. As numbers are counted by powers of two, those
    between 65504 and 65536 are not among `above`; `overflows` takes notice of them. A scale that
    is no power of two is rounded up to one for `above`, and down for the others.

    Attributes:
        scale: the loss scale.
        lost: share below the smallest FP16 number, 2^-24.
        subnormal: share from there to the smallest normal one, 2^-14: held with fewer digits.
        above: share of 65536 and more, infinite ones and NaN among them.
        overflows: whether the largest finite number is beyond 65504.
    """

    scale: float
    lost: float
    subnormal: float
    above: float
    overflows: bool


def gradients_in_fp16(forward: Forward, plan: Plan, ranges: Ranges) -> tuple[Gradient, ...]:
    """Return the gradients that backward holds in FP16 under a plan, in graph order.

    These are the gradients by tensors that are stored in FP16 or have a copy in it, such as the
    working copy of a weight. The gradient by the loss itself is the scale, in FP32, and so is all
    that lies between the loss and the first tensor in FP16. A view is left out: its gradient is
    that of the tensor it shows.
    """
    return tuple(
        found
        for found in _all(forward, ranges)
        if Precision.FP16 in plan.storage.get(found.tensor, ())
    )


def joined(gradients: Iterable[Gradient]) -> Range:
    """Return what several gradients held together; with none, an empty range."""
    return reduce(Range.joined, (found.held for found in gradients), Range(0.0, 0, 0, 0, ()))


def losses(held: Range, scale: float) -> Losses:
    """Return what FP16 does to gradients times a scale, which is above 0."""
    bits = math.log2(scale)
    lost = held.share_lost(scale)
    return Losses(
        scale=scale,
        lost=lost,
        subnormal=held.share_below(NORMAL - bits) - lost,
        above=1.0 - held.share_below(TOP + 1 - bits) if held.count > held.zeros else 0.0,
        overflows=held.largest_finite * scale > Precision.FP16.largest,
    )


def recommended_scale(largest: float) -> float | None:
    """Return the largest power of two that keeps a number `HEADROOM_BITS` below overflow.

    It is below 1 if the number is beyond 65504 / 4 as it is. It is at most 2^127, as the scale is
    an FP32 number. For zero there is none.

    Args:
        largest: the largest magnitude of the unscaled gradients, finite.
    """
    if largest == 0.0:
        return None
    limit, bits = math.frexp(Precision.FP16.largest / 2**HEADROOM_BITS)
    fraction, exponent = math.frexp(largest)
    power = bits - exponent - (fraction > limit)
    return 2.0 ** min(power, HIGHEST)


def most_lost(gradients: Sequence[Gradient], scale: float) -> list[Gradient]:
    """Return gradients of which any part is lost, with or without a scale, the most lost first."""
    found = [item for item in gradients if item.held.share_below_smallest]
    return sorted(
        found, key=lambda item: (-item.held.share_lost(scale), -item.held.share_below_smallest)
    )


def underflows(forward: Forward, ranges: Ranges, scale: float = 1.0) -> tuple[Underflow, ...]:
    """Return where gradients times a scale begin to underflow, in graph order.

    That may be the gradient by a tensor that stays in FP32: what is small there is small in all
    that backward computes from it.
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
            found.append(Underflow(gradient, readers[0].name, place_of(readers[0])))
    return tuple(found)


def _all(forward: Forward, ranges: Ranges) -> list[Gradient]:
    names = {item.node: item.name for item in forward.inputs if item.kind is Kind.PARAMETER}
    found = []
    for node in forward.module.graph.nodes:
        if node.name not in ranges.gradients or _shows(node):
            continue
        weight = node.name in names
        name = names.get(node.name, node.name)
        held = ranges.gradients[node.name]
        found.append(Gradient(node.name, name, weight, _place(node), held))
    return found


def _shows(node: fx.Node) -> bool:
    """Whether a node is a view, or one of those that an op returns together."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return is_view(node.args[0])
    return is_view(node)


def _place(node: fx.Node) -> Where:
    if node.op == "call_function":
        return place_of(node)
    return next((place_of(user) for user in node.users if user.op == "call_function"), Where())


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return the ops that read a tensor, itself or through views of it."""
    found: list[fx.Node] = []
    for user in node.users:
        several = isinstance(user.meta.get("val"), tuple | list)  # which its users take apart
        found += _readers(user) if _shows(user) or several else [user]
    return found
