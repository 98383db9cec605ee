"""Constants that mask positions: very negative numbers that reach a softmax.

Exporters write ``-3.4e38`` or ``-1e9`` at positions that attention must ignore. FP16 has no such
number, but any number far below the other logits has the same effect, so such a constant is no
reason to compute in FP32: in 16 bits it becomes `MASK`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mpcompile.onnx_graph.values import constant_of, is_standard

MASK = -(2.0**15)
"""Far below any relevant logit, and far enough from overflow that logits may be added."""

_PASSES_ON = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Expand Identity Slice Concat Pad Tile Where "
    "Add".split()
)
_MOVES = frozenset("Reshape Transpose Flatten Squeeze Unsqueeze Expand Identity Slice".split())
_WHOLE = frozenset(
    getattr(ir.DataType, name)
    for name in "BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)


@dataclass(frozen=True, slots=True)
class MaskedSoftmax:
    """A softmax that reads what a mask was put into.

    Attributes:
        node: the softmax.
        added: whether the mask is added to the logits, not chosen instead of them.
        moved: whether other ops than additions are between, so it is not known what is in a row.
    """

    node: ir.Node
    added: bool
    moved: bool

    def may_hide_a_row(self, mask: ir.TensorProtocol) -> bool:
        """Return whether all logits of a row may be masked.

        Args:
            mask: the numbers of the constant.
        """
        axis = self.node.attributes.get_int("axis", -1)
        if self.moved or axis != -1:
            return True
        hidden = mask.numpy() < -float(np.finfo(np.float16).max)
        return bool(hidden.all(-1).any() if hidden.ndim else hidden)


@dataclass(frozen=True, slots=True)
class Masked:
    """What a mask is put into.

    Attributes:
        softmaxes: where it ends.
        values: all that is made from it before, whose numbers mean nothing where it hides them.
    """

    softmaxes: tuple[MaskedSoftmax, ...]
    values: frozenset[ir.Value]


def ends_in_softmax(value: ir.Value) -> bool:
    """Return whether every result made from a constant ends in a softmax, added or chosen.

    A product counts if its other factor comes from whole numbers, as in ``(1 - mask) * -1e9``.
    """
    return masked_by(value) is not None


def masked_by(value: ir.Value) -> Masked | None:
    """Return what a constant is put into, if it ends in softmaxes and nowhere else."""
    found: dict[MaskedSoftmax, None] = {}
    start = (value, False, False)
    seen, open_ends = {start}, [start]
    while open_ends:
        current, added, moved = open_ends.pop()
        if current.is_graph_output() or not current.uses():
            return None
        for node, index in current.uses():
            if not is_standard(node):
                return None
            if node.op_type == "Softmax":
                found[MaskedSoftmax(node, added, moved)] = None
                continue
            passes = node.op_type in _PASSES_ON or (
                node.op_type == "Mul" and _is_whole(node.inputs[1 - index])
            )
            if not passes or (node.op_type == "Pad" and index != 0):
                return None
            adds = node.op_type == "Add"
            for made in node.outputs:
                behind = (made, added or adds, moved or not adds)
                if behind not in seen:
                    seen.add(behind)
                    open_ends.append(behind)
    return Masked(tuple(found), frozenset(each for each, _, _ in seen))


def factors_of_masks(constants: Iterable[ir.Value]) -> set[ir.Value]:
    """Return the values between integers and their product with a constant that masks.

    They are 0 or 1, although integers of another origin can be larger than FP16 holds.
    """
    found: set[ir.Value] = set()
    for constant in constants:
        for node, index in constant.uses():
            if node.op_type == "Mul" and is_standard(node):
                found.update(_whole_chain(node.inputs[1 - index]) or ())
    return found


def _is_whole(value: ir.Value | None) -> bool:
    """Return whether a value holds whole numbers because it was cast from whole numbers."""
    return _whole_chain(value) is not None


def _whole_chain(value: ir.Value | None) -> list[ir.Value] | None:
    """Return the values from a cast of whole numbers to one that holds them, or None."""
    chain: list[ir.Value] = []
    while value is not None:
        chain.append(value)
        node = value.producer()
        if node is None or not is_standard(node):
            return None
        if node.op_type == "Cast":
            source = node.inputs[0]
            return chain if source is not None and source.dtype in _WHOLE else None
        if node.op_type in _MOVES:
            value = node.inputs[0]
        elif node.op_type in ("Sub", "Add", "Mul") and len(node.inputs) == 2:
            rest = [item for item in node.inputs if not _is_one(item)]
            if len(rest) != 1:
                return None
            value = rest[0]
        else:
            return None
    return None


def _is_one(value: ir.Value | None) -> bool:
    tensor = constant_of(value)
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().reshape(-1)[0]) == 1.0
