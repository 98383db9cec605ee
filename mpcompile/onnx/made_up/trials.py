"""Make up inputs that a model takes: try sizes and numbers until the runtime does not refuse them.

A file tells little about its inputs: it leaves sizes open, and a size that it leaves open may have
to be a multiple of 32, or 400 at least. So several sizes and kinds of numbers are tried, the
smallest first, and a batch counts if the original gives finite numbers on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from time import monotonic

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import InlinePass

from mpcompile.errors import BadInput
from mpcompile.onnx.made_up.far_inputs import far_inputs, masks
from mpcompile.onnx.made_up.input_readings import Reading, readings
from mpcompile.onnx.made_up.random_inputs import Style, random_inputs
from mpcompile.onnx.sessions import LONGEST_RUN, Array, Output, given_inputs, run, session_of
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names

LONGEST_SEARCH = 6.0
"""Seconds of runs that fail after which no more are tried."""
_LENGTHS = (2, 16, 64, 32, 128, 224, 320, 512, 1280, 4096, 16000)
_LONGEST = 512
_LONGEST_IMAGE = 320
"""Lengths beyond which attention over them, or an image of them, would not fit into memory."""
_IMAGE = 64
_MOST_TRIED = 1 << 24
"""Most elements of a tried input."""
_RANKS = (2, 3, 4, 1)
_EMPTY = 1e-9
_ENOUGH = 18
"""Trials after which numbers that are not finite count as the model's own."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A batch that the original takes.

    Attributes:
        batch: inputs by name.
        made: what the original makes of them.
    """

    batch: dict[str, Array]
    made: dict[str, Output]

    @property
    def finite(self) -> float:
        """The share of finite numbers among the floating-point results; 1 if all are integers.

        It is almost 0 if the results are empty, as pooling makes of an image that is too small.
        """
        arrays = [value for value in self.made.values() if isinstance(value, np.ndarray)]
        floats = [value for value in arrays if value.dtype.kind == "f"]
        count = sum(value.size for value in floats)
        if not count:
            return _EMPTY if floats else 1.0
        return sum(int(np.isfinite(value).sum()) for value in floats) / count


def made_up_inputs(original: ir.Model) -> list[Tried]:
    """Return batches that a model takes: small, longer, with hidden rows, with large integers.

    Args:
        original: the model; it is not changed.

    Raises:
        BadInput: the runtime refuses the model, or none of the tried inputs; or it makes no finite
            number of them.
    """
    runs = original.clone()
    distinct_onnx_names(runs)
    with session_of(runs) as session:
        search = _Search(session)
        model, choice, first = _first(original, search)
        found = [first]
        found += search.first_of(_longer(model, choice))
        found += search.first_of(_hidden(model, first))
        found += search.first_of(far_inputs(model, sizes=choice.sizes, style=choice.style))
    return found


class _Search:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._left = LONGEST_SEARCH
        self._limit = LONGEST_RUN
        self.refused = ""

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._left <= 0

    def tried(self, batch: dict[str, Array]) -> Tried | None:
        """Return what the original makes of a batch, or None if the runtime refuses it."""
        begin = monotonic()
        try:
            made = run(self._session, batch, self._limit)
        except BadInput as error:
            self.refused = self.refused or error.what
            self._left -= monotonic() - begin
            self._limit = min(self._limit, max(self._left, 1.0))
            return None
        self._limit = max(10 * (monotonic() - begin), LONGEST_SEARCH)
        return Tried(batch, made)

    def first_of(self, batches: Iterable[dict[str, Array]]) -> list[Tried]:
        """Return the first batch that runs and gives any finite number, or none."""
        for batch in batches:
            if self.is_over:
                break
            tried = self.tried(batch)
            if tried is not None and tried.finite:
                return [tried]
        return []


@dataclass(frozen=True, slots=True)
class _Choice:
    sizes: Mapping[str, int]
    style: Style
    known: Mapping[str, Reading]


def _first(original: ir.Model, search: _Search) -> tuple[ir.Model, _Choice, Tried]:
    """Return the first batch that gives only finite numbers, else the one that gives most."""
    best: tuple[ir.Model, _Choice, Tried] | None = None
    for model in _shaped(original):
        for count, choice in enumerate(_choices(model)):
            enough = best is not None and best[2].finite > _EMPTY and count >= _ENOUGH
            if search.is_over or enough:
                break
            batch = random_inputs(model, 0, choice.sizes, choice.style, choice.known)
            tried = search.tried(batch)
            share = 0.0 if tried is None else tried.finite
            if tried is not None and share > (0.0 if best is None else best[2].finite):
                best = model, choice, tried
            if share == 1.0:
                break
        if best is not None:
            return best
    why = search.refused or "it gives no finite number"
    raise BadInput(f"no made-up inputs run: {why}", fix="give its inputs with --data FILE.npz")


def _shaped(original: ir.Model) -> Iterator[ir.Model]:
    """Yield the model with a name for each open dimension, and a rank for each input."""
    for rank in _RANKS:
        model = original.clone()
        if model.functions:
            InlinePass()(model)
        infer_types(model)
        known = readings(given_inputs(model))
        guessed = False
        for name, value in given_inputs(model).items():
            if value.shape is None and isinstance(value.type, ir.TensorType):
                told = known[name].rank
                guessed = guessed or told is None
                value.shape = ir.Shape([None] * (rank if told is None else told))
            if value.shape is not None:
                value.shape = ir.Shape(
                    size if isinstance(size, int) or size.value is not None else f"{name}.{axis}"
                    for axis, size in enumerate(value.shape)
                )
        infer_types(model)
        yield model
        if not guessed:
            return


def _choices(model: ir.Model) -> Iterator[_Choice]:
    """Yield sizes and styles: the smallest lengths first."""
    given = given_inputs(model)
    known = readings(given)
    fixed, batches, lengths = _open(given, known)
    longest = _longest(given)
    seen = set()
    for near in (True, False):
        for style in Style:
            for batch in (2, 1):
                for length in _LENGTHS:
                    sizes = {**dict.fromkeys(lengths, length), **dict.fromkeys(batches, batch)}
                    sizes |= fixed
                    key = (style, *sorted(sizes.items()))
                    far = length > _LENGTHS[2]
                    if far is near or length > longest or key in seen or _is_large(given, sizes):
                        continue
                    seen.add(key)
                    yield _Choice(sizes, style, known)


def _open(
    given: Mapping[str, ir.Value], known: Mapping[str, Reading]
) -> tuple[dict[str, int], set[str], set[str]]:
    """Return the names of open dimensions: those with a known size, batches, and lengths."""
    fixed: dict[str, int] = {}
    batches, lengths = set[str](), set[str]()
    for name, value in given.items():
        shape = list(value.shape or ())
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            label = str(size.value)
            before = shape[:axis]
            is_first = not any(isinstance(other, ir.SymbolicDim) or other == 1 for other in before)
            if axis in known[name].sizes:
                fixed[label] = known[name].sizes[axis]
            elif is_first or "batch" in label.lower():
                batches.add(label)
            else:
                lengths.add(label)
    return fixed, batches, lengths - batches


def _longest(given: Mapping[str, ir.Value]) -> int:
    """Return the longest dimension to be tried: samples of sound may be long, all else may not."""
    ranks = []
    for value in given.values():
        shape = list(value.shape or ())
        if any(isinstance(size, ir.SymbolicDim) for size in shape):
            whole = value.dtype is not None and value.dtype.is_integer() and len(shape) > 1
            ranks.append(3 if whole else sum(size != 1 for size in shape))
    most = max(ranks, default=0)
    return _LONGEST_IMAGE if most > 3 else _LONGEST if most > 2 else _LENGTHS[-1]


def _is_large(given: Mapping[str, ir.Value], sizes: Mapping[str, int]) -> bool:
    return any(
        prod(s if isinstance(s, int) else sizes.get(str(s.value), 2) for s in value.shape or ())
        > _MOST_TRIED
        and any(isinstance(size, ir.SymbolicDim) for size in value.shape or ())
        for value in given.values()
    )


def _longer(model: ir.Model, choice: _Choice) -> Iterator[dict[str, Array]]:
    """Yield inputs with longer dimensions: images of some size, an odd length, twice the first."""
    fixed, _, lengths = _open(given_inputs(model), choice.known)
    if not lengths - fixed.keys():
        return
    first = max(choice.sizes[name] for name in lengths - fixed.keys())
    images = any(len(value.shape or ()) > 3 for value in given_inputs(model).values())
    for length in (*([_IMAGE] if images else []), 2 * first + 3, 2 * first):
        if first < length <= 2 * _LONGEST_IMAGE:
            sizes = {**choice.sizes, **dict.fromkeys(lengths - fixed.keys(), length)}
            yield random_inputs(model, 1, sizes, choice.style, choice.known)


def _hidden(model: ir.Model, first: Tried) -> Iterator[dict[str, Array]]:
    """Yield inputs whose masks show everything in the first row and nothing in the last one."""
    found = {name for name in masks(model) if first.batch[name].ndim}
    if found:
        batch = dict(first.batch)
        for name in found:
            mask = np.ones_like(batch[name])
            mask[-1:] = 0
            batch[name] = mask
        yield batch
