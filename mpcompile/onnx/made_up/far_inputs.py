"""Make up integers and lengths for a model as large as a user could send: ids, positions, times.

Random zeros and ones hide what 16 bits do to a position of 30,000. So

- an integer that the model turns into a floating-point number goes up to `LARGEST`, or up to the
  constant that it meets in a Clip, a Min or a comparison;
- an id that a table is read by goes up to the size of the table;
- a mask stays 0 and 1;
- a length of which the model makes positions itself (a Range over a shape) is `LONG`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from mpcompile.onnx.made_up.input_readings import readings
from mpcompile.onnx.made_up.random_inputs import Style, random_inputs
from mpcompile.onnx.sessions import Array, given_inputs
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.values import is_full

LARGEST = 100_000
LONG = 1_024
"""A length at which FP16 has lost a digit of the last positions' angles, and a model runs soon."""
_MASK = 2

_ALL = frozenset("Identity Concat Add Sub Mul Div Mod Abs Neg Max Min Clip Where Sum".split())
"""Ops whose integer results are about as large as any of their inputs."""
_FIRST = frozenset(
    "Cast Reshape Squeeze Unsqueeze Expand Transpose Slice Flatten Tile Gather GatherElements "
    "ReduceMax ReduceMin Split Pad".split()
)
"""Ops whose results are about as large as their first input; the others are places or shapes."""
_COMPARES = frozenset("Less LessOrEqual Greater GreaterOrEqual".split())
_TABLES: Mapping[tuple[str, int], int] = {
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("RotaryEmbedding", 3): 1,
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
    ("EmbedLayerNormalization", 8): 3,
}
"""Per op and position of an index, the position of the table; see also `_table`."""


def far_inputs(
    model: ir.Model,
    seed: int = 1,
    sizes: Mapping[str, int] | None = None,
    style: Style = Style.NORMAL,
) -> Iterator[dict[str, Array]]:
    """Yield inputs with large integers and long lengths, then with large integers alone.

    Other inputs are as `random_inputs` makes them. The model may refuse them. Nothing is yielded
    if no integer and no length may be large.

    Args:
        model: the model; it is not changed.
        seed: of the random numbers.
        sizes: sizes of open dimensions by name, of those that are not made long.
        style: what numbers where the graph does not tell.

    Raises:
        BadInput: see `random_inputs`.
    """
    model = model.clone()
    infer_types(model)
    bounds = {name: _bound(value) for name, value in given_inputs(model).items()}
    far = {name: bound for name, bound in bounds.items() if bound > _MASK}
    known = readings(given_inputs(model))
    long = _long_sizes(model)
    for lengths in [long, {}] if long else [{}]:
        if far or lengths:
            made = random_inputs(model, seed, {**(sizes or {}), **lengths}, style, known)
            yield _with_far(made, far, seed)


def masks(model: ir.Model) -> list[str]:
    """Return the names of integer and boolean inputs that say which positions count."""
    return [
        name
        for name, value in given_inputs(model).items()
        if value.dtype is ir.DataType.BOOL or _bound(value) == _MASK
    ]


def _with_far(made: dict[str, Array], far: Mapping[str, int], seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    for name, bound in far.items():
        array = made[name]
        most = min(bound, np.iinfo(str(array.dtype)).max)
        made[name] = generator.integers(0, most, array.shape).astype(array.dtype)
    return made


def _bound(value: ir.Value) -> int:
    """Return the number below which the integers of an input must be; 0 if it holds none."""
    dtype = value.dtype
    if dtype is None or not dtype.is_integer():
        return 0
    return min(_bounds(value), default=0)


def _bounds(start: ir.Value) -> Iterator[int]:
    """Yield the bounds of integers, by all that reads them."""
    waiting, seen = [start], {start}
    while waiting:
        value = waiting.pop()
        for node, position in value.uses():
            kind = node.op_type
            table = _table(node, position)
            if table is not None:
                yield table
            elif kind == "CumSum" and position == 0:
                yield _MASK  # positions are counted from a mask
            elif kind == "Range":
                yield LONG
            elif kind == "Cast" and is_full(node.outputs[0]):
                yield _MASK if _is_mask(node.outputs[0]) else LARGEST
            elif kind == "Cast" and node.outputs[0].dtype is ir.DataType.BOOL:
                yield _MASK
            else:
                yield from _by_constants(node, position)
                if kind in _ALL or (kind in _FIRST and position == 0):
                    fresh = [item for item in node.outputs if item not in seen]
                    seen.update(fresh)
                    waiting += fresh


def _by_constants(node: ir.Node, position: int) -> Iterator[int]:
    """Yield the bounds that an integer has by a constant that it meets, such as 1,000 time steps.

    A comparison gets numbers on both sides of its constant.
    """
    if node.op_type not in ("Min", "Clip", *_COMPARES):
        return
    for place, other in enumerate(node.inputs):
        number = _number(other) if place != position else None
        if number is not None and number > 1:
            yield int(2 * number if node.op_type in _COMPARES else number + 1)


def _is_mask(value: ir.Value) -> bool:
    """Whether a float that was an integer is a mask: the model takes it from 1."""
    waiting = [value]
    while waiting:
        for node, position in waiting.pop().uses():
            if node.op_type == "Sub" and position == 1 and _number(node.inputs[0]) == 1:
                return True
            if node.op_type == "Cast" and node.outputs[0].dtype is ir.DataType.BOOL:
                return True
            if node.op_type in _FIRST and position == 0:
                waiting += node.outputs
    return False


def _table(node: ir.Node, position: int) -> int | None:
    """Return how many entries an index chooses among; None if it is none, or they are unknown."""
    kind = node.op_type
    if kind == "OneHot" and position == 0:
        depth = _number(node.inputs[1])
        return None if depth is None else int(depth)
    found = _TABLES.get((kind, position))
    if kind == "RotaryEmbedding" and node.domain == "com.microsoft":
        found = 2 if position == 1 else None
    if found is None or found >= len(node.inputs):
        return None
    shape = node.inputs[found].shape if node.inputs[found] is not None else None  # type: ignore[union-attr]
    if shape is None:
        return 0
    size = shape[node.attributes.get_int("axis", 0) if kind.startswith("Gather") else 0]
    return size if isinstance(size, int) else 0


def _number(value: ir.Value | None) -> float | None:
    """Return the number of a constant that has one element, else None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype is ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def _long_sizes(model: ir.Model) -> dict[str, int]:
    """Return the open dimensions of which the model makes positions, with a long size for each."""
    sizes: dict[str, int] = {}
    for node in model.graph:
        if node.op_type == "Range":
            names = {name for limit in node.inputs[:2] for name in _open_sizes(limit)}
        elif node.op_type == "CumSum":
            names = set(_open_names(node.inputs[0], slice(-1, None)))
        else:
            continue
        made = node.outputs[0]
        uses = [LARGEST] if is_full(made) else list(_bounds(made))
        if LARGEST in uses:
            for name in names:
                sizes[name] = min(sizes.get(name, LONG), *uses)
    return sizes


def _open_sizes(start: ir.Value | None) -> Iterator[str]:
    """Yield the names of the open dimensions that an integer is computed from."""
    waiting, seen = [start], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if value is None or value in seen or node is None:
            continue
        seen.add(value)
        if node.op_type == "Shape":
            ends = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            yield from _open_names(node.inputs[0], slice(*ends))
        elif node.op_type == "Gather" and (index := _number(node.inputs[1])) is not None:
            shape = node.inputs[0].producer() if node.inputs[0] is not None else None
            if shape is not None and shape.op_type == "Shape":
                place = int(index)
                yield from _open_names(shape.inputs[0], slice(place, place + 1 or None))
            else:
                waiting.append(node.inputs[0])
        else:
            waiting += node.inputs


def _open_names(value: ir.Value | None, places: slice) -> Iterator[str]:
    if value is not None and value.shape is not None:
        for size in list(value.shape)[places]:
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                yield str(size.value)
