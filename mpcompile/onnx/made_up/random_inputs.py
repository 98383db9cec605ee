"""Random inputs of the types, sizes and ranges that a model asks for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import prod

import numpy as np
import onnx_ir as ir

from mpcompile.errors import BadInput
from mpcompile.onnx.made_up.input_readings import Reading
from mpcompile.onnx.sessions import Array, given_inputs

_MOST_RANDOM = 1 << 28
"""Most elements of a random input."""
_OPEN = 2
"""The size of open dimensions about which nothing is known."""


class Style(Enum):
    """What numbers are made up where the graph does not tell."""

    NORMAL = "normal numbers, integers of 0 and 1"
    POSITIVE = "numbers from 0 to 1, integers of 1"
    LENGTHS = "numbers from 0 to 1, integers as large as the longest dimension"


def random_inputs(
    model: ir.Model,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    style: Style = Style.NORMAL,
    known: Mapping[str, Reading] | None = None,
) -> dict[str, Array]:
    """Return inputs of the right types.

    Args:
        model: the model.
        seed: of the random numbers.
        sizes: sizes of open dimensions by name; the others get the size 2.
        style: what numbers where ``known`` tells nothing.
        known: what the graph does with its inputs, see `mpcompile.onnx.made_up.input_readings`.

    Raises:
        BadInput: an input is not a tensor, or its shape is unknown.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    longest = max((sizes or {}).values(), default=_OPEN)
    for name, value in given_inputs(model).items():
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            raise BadInput(f"no random numbers fit the input {name}", fix="give --data FILE.npz")
        shape = tuple(
            size if isinstance(size, int) else (sizes or {}).get(str(size.value), _OPEN)
            for size in value.shape
        )
        if prod(shape) > _MOST_RANDOM:
            what = f"the input {name} is too large for random numbers"
            raise BadInput(what, fix="give --data FILE.npz")
        dtype, reading = value.type.dtype, (known or {}).get(name, Reading())
        if dtype is ir.DataType.STRING:
            made[name] = np.full(shape, "a", object)
        elif dtype.numpy().kind in "iub":
            made[name] = _whole(generator, shape, style, reading, longest).astype(dtype.numpy())
        else:
            made[name] = _real(generator, shape, style, reading).astype(dtype.numpy())
    return made


def _whole(
    generator: np.random.Generator,
    shape: tuple[int, ...],
    style: Style,
    reading: Reading,
    longest: int,
) -> Array:
    if reading.equals:  # one number chooses among ways; of many, some are the one to be found
        return generator.choice(np.array([*reading.equals, *([0, 1] if shape else [])]), shape)
    if style is Style.NORMAL:
        return generator.integers(0, 2, shape)
    return np.full(shape, 1 if style is Style.POSITIVE else longest)


def _real(
    generator: np.random.Generator, shape: tuple[int, ...], style: Style, reading: Reading
) -> Array:
    if reading.low is not None:
        return np.asarray(generator.uniform(reading.low, reading.high, shape))
    if style is Style.NORMAL:
        return np.asarray(generator.standard_normal(shape))
    return np.asarray(generator.uniform(0.0, 1.0, shape))
