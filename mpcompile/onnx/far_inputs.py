"""Make up integers for a model as large as a user could send: ids, positions, times.

Random zeros and ones hide what 16 bits do to a position of 30,000. An id that a table is read by
goes up to the size of the table. An integer that the model turns into a floating-point number
goes up to `LARGEST`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mpcompile.onnx.sessions import Array, given_inputs, random_inputs
from mpcompile.onnx_graph.values import is_full

LARGEST = 100_000

_PASSES = frozenset(
    "Identity Reshape Squeeze Unsqueeze Expand Transpose Slice Concat Add Sub Mul Flatten Tile "
    "Cast Min Max Clip Where".split()
)
"""Ops whose integer results are as large as their inputs."""


def far_inputs(model: ir.Model, seed: int = 1) -> dict[str, Array] | None:
    """Return inputs with large integers, or None if no integer input may be large.

    Other inputs are as in `random_inputs`. The model may refuse them.

    Args:
        model: the model, types inferred.
        seed: of the random numbers.

    Raises:
        BadInput: see `random_inputs`.
    """
    made = random_inputs(model, seed)
    generator = np.random.default_rng(seed)
    found = False
    for name, value in given_inputs(model).items():
        if made[name].dtype.kind not in "iu":
            continue
        bound = min(_bounds(value), default=0)
        if bound > 2:
            bound = min(bound, np.iinfo(str(made[name].dtype)).max)
            numbers = generator.integers(0, bound, made[name].shape)
            made[name] = numbers.astype(made[name].dtype)
            found = True
    return made if found else None


def _bounds(start: ir.Value) -> Iterator[int]:
    """Yield the bounds of an integer: table sizes, and `LARGEST` if it becomes a float."""
    waiting, seen = [start], {start}
    while waiting:
        value = waiting.pop()
        for node, position in value.uses():
            if node.op_type == "Gather" and position == 1:
                yield _rows(node)
            elif node.op_type == "Cast" and is_full(node.outputs[0]):
                yield LARGEST
            elif node.op_type in _PASSES:
                fresh = [item for item in node.outputs if item not in seen]
                seen.update(fresh)
                waiting += fresh


def _rows(gather: ir.Node) -> int:
    """Return how many entries a Gather chooses among; 0 if unknown."""
    data = gather.inputs[0]
    axis = gather.attributes.get_int("axis", 0)
    if data is None or data.shape is None:
        return 0
    size = data.shape[axis]
    return size if isinstance(size, int) else 0
