"""What a model does with each of its inputs: the sizes and the numbers that it must have.

A convolution tells the channels of an image, a matrix the width of a row. A division by 255 tells
that the numbers go up to 255, a logarithm that they are positive, a comparison with 16,000 that
this is one of the numbers to expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mpcompile.onnx_graph.values import is_standard

_MOST_NUMBERS = 4096
_FAR = 100.0
"""A number from which on a divisor is the range of what it divides."""
_NEAR = 1e-2
"""An addend up to which a sum has the range of what it is added to: an epsilon."""
_SIGNED = (32767.0, 32768.0, 2147483648.0)
"""The ranges of samples of sound."""
_MOVES = frozenset("Cast Reshape Slice Pad Flatten Resize Upsample Expand".split())
_SAME = frozenset(
    "Identity Cast Dropout Relu LeakyRelu Sigmoid Tanh Abs Neg Exp Log Sqrt Clip".split()
)
_PAIRS = frozenset("Add Sub Mul Div Pow".split())
_POSITIVE = frozenset({"Log", "Sqrt"})

_Axes = tuple[int | None, ...]


@dataclass
class Reading:
    """What is known of an input by those who read it.

    Attributes:
        rank: how many dimensions it has, if a reader tells.
        sizes: per axis the size it must have.
        low: the smallest number, or None if normal numbers will do.
        high: the largest number, if ``low`` is given.
        equals: the numbers that it is compared with.
    """

    rank: int | None = None
    sizes: dict[int, int] = field(default_factory=dict)
    low: float | None = None
    high: float = 1.0
    equals: list[float] = field(default_factory=list)


def readings(given: Mapping[str, ir.Value]) -> dict[str, Reading]:
    """Return what is known of each input of a model whose types are inferred."""
    return {name: _reading(value) for name, value in given.items()}


def _reading(start: ir.Value) -> Reading:
    found = Reading(None if start.shape is None else len(start.shape))
    axes: _Axes | None = None if start.shape is None else tuple(range(len(start.shape)))
    waiting = [(start, axes, True)]
    seen = {start}
    while waiting:
        value, axes, own = waiting.pop()
        for node, position in value.uses():
            if not is_standard(node):
                continue
            if own:
                _note_numbers(found, node, position)
            _note_sizes(found, node, position, axes)
            made = node.outputs[0] if node.outputs else None
            goes_on, behind = _behind(node, position, axes)
            if made is None or made in seen or not goes_on:
                continue
            seen.add(made)
            waiting.append((made, behind, own and _keeps_numbers(node, position)))
    return found


def _keeps_numbers(node: ir.Node, position: int) -> bool:
    """Whether the numbers of a result are those that the node reads, or very near to them."""
    kind = node.op_type
    if kind == "Add":
        return abs(_number(node, 1 - position) or 1.0) <= _NEAR
    return kind in _MOVES or kind in ("Identity", "Transpose", "Squeeze", "Unsqueeze")


def _note_numbers(found: Reading, node: ir.Node, position: int) -> None:
    """Note what an op tells of the numbers that it reads."""
    kind, other = node.op_type, _number(node, 1 - position)
    if kind == "Equal" and other is not None:
        found.equals.append(other)
    elif kind == "Div" and position == 0 and other is not None and abs(other) >= _FAR:
        found.low, found.high = (-abs(other) if abs(other) in _SIGNED else 0.0), abs(other)
    elif kind == "Mul" and other is not None and 0 < abs(other) <= 1 / _FAR:
        found.low, found.high = 0.0, 1 / abs(other)
    elif kind == "Sub" and position == 0 and other is not None and other > 2:
        found.low, found.high = 0.0, 2 * other
    elif kind in _POSITIVE or (kind == "Pow" and position == 0 and other is not None and other % 1):
        found.low, found.high = 0.0, max(found.high, 1.0)
    elif kind == "Clip" and position == 0:
        low, high = _number(node, 1), _number(node, 2)
        if low is not None and high is not None and -1e6 < low < high < 1e6:
            found.low, found.high = low, high


def _note_sizes(found: Reading, node: ir.Node, position: int, axes: _Axes | None) -> None:
    """Note which sizes an op needs in what it reads."""
    kind = node.op_type
    other = _sizes(node, 1 if position == 0 else 0)
    needs: dict[int, int] = {}
    rank = None
    if kind == "Conv" and position == 0 and len(other) > 2:
        rank, needs = len(other), {1: other[1] * node.attributes.get_int("group", 1)}
    elif kind == "ConvTranspose" and position == 0 and len(other) > 2:
        rank, needs = len(other), {1: other[0]}
    elif kind == "Gemm" and position == 0 and len(other) == 2:
        rank = 2
        axis = 0 if node.attributes.get_int("transA", 0) else 1
        needs = {axis: other[1] if node.attributes.get_int("transB", 0) else other[0]}
    elif kind == "MatMul" and len(other) > 1:
        needs = {-1: other[-2]} if position == 0 else {-2: other[-1]}
    elif kind in ("LSTM", "GRU", "RNN") and position == 0 and len(other) == 3:
        rank, needs = 3, {2: other[2]}
    elif kind in ("LSTM", "GRU", "RNN") and position in (5, 6):
        recurrent = _sizes(node, 2)
        rank, needs = 3, {0: recurrent[0], 2: recurrent[2]} if len(recurrent) == 3 else {}
    elif kind in ("BatchNormalization", "InstanceNormalization") and position == 0 and other:
        needs = {1: other[0]}
    elif kind == "LayerNormalization" and position == 0 and other:
        needs = {-1: other[-1]}
    elif kind in _PAIRS:
        needs = {-1 - k: size for k, size in enumerate(reversed(other)) if size > 1}
    if axes is None and rank is not None and found.rank is None:
        found.rank, axes = rank, tuple(range(rank))
    for place, size in needs.items():
        known = axes is not None and -len(axes) <= place < len(axes)
        own = axes[place] if axes is not None and known else None
        if own is not None and size > 0:
            found.sizes.setdefault(own, size)


def _behind(node: ir.Node, position: int, axes: _Axes | None) -> tuple[bool, _Axes | None]:
    """Return whether a result tells more of an input, and which axes of it the result has."""
    kind = node.op_type
    if kind in _SAME and position == 0:
        return True, axes
    if kind in _PAIRS:
        made = node.outputs[0].shape
        same = made is not None and axes is not None and len(made) == len(axes)
        return True, axes if same else None
    if kind == "Transpose" and axes is not None:
        order = node.attributes.get_ints("perm", tuple(reversed(range(len(axes)))))
        return True, tuple(axes[k] for k in order) if len(order) == len(axes) else None
    if kind in ("Unsqueeze", "Squeeze") and axes is not None and position == 0:
        return True, _squeezed(node, axes)
    return kind in _MOVES and position == 0, None


def _squeezed(node: ir.Node, axes: _Axes) -> _Axes | None:
    told = node.attributes.get_ints("axes", None)
    array = _array(node, 1)
    places = told if told is not None else None if array is None else array.reshape(-1).tolist()
    if not places:
        return None
    if node.op_type == "Squeeze":
        gone = {int(place) % len(axes) for place in places} if axes else set()
        return tuple(axis for k, axis in enumerate(axes) if k not in gone)
    rank, rest = len(axes) + len(places), iter(axes)
    fresh = {int(place) % rank for place in places}
    return tuple(None if k in fresh else next(rest, None) for k in range(rank))


def _sizes(node: ir.Node, position: int) -> tuple[int, ...]:
    """Return the sizes of an input of a node; none if they are not all known."""
    value = node.inputs[position] if position < len(node.inputs) else None
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return ()
    return tuple(size for size in shape if isinstance(size, int))


def _number(node: ir.Node, position: int) -> float | None:
    """Return the number of largest magnitude of a small constant that a node reads."""
    array = _array(node, position)
    if array is None or not array.size or array.dtype.kind not in "iuf":
        return None
    return float(max(array.reshape(-1).tolist(), key=abs))


def _array(node: ir.Node, position: int) -> np.ndarray | None:
    value = node.inputs[position] if 0 <= position < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _MOST_NUMBERS or tensor.dtype is ir.DataType.STRING:
        return None
    return tensor.numpy()
