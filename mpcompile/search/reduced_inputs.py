"""Smaller inputs for a failing part: slices, constants, seeded random numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import fx

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.torch_private.ops import is_pointwise, op_name

INLINE = 64
"""The script contains tensors of up to this many numbers as literals."""

_CHECKED = frozenset(
    ("matmul", "softmax", "log_softmax", "mean", "sum", "vector norm", "variance", "movement",
     "cast", "pointwise", "activation")
)  # fmt: skip
_PAIRED = 12  # up to this many equal dimensions, pairs from two inputs are halved together


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of equal numbers."""

    number: float

    def like(self, value: torch.Tensor) -> torch.Tensor:
        """Return the tensor in the shape, dtype and device of another."""
        return torch.full(value.shape, self.number, dtype=value.dtype, device=value.device)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A tensor of normally distributed random numbers, drawn on the CPU."""

    seed: int
    mean: float
    deviation: float

    def like(self, value: torch.Tensor) -> torch.Tensor:
        """Return the tensor in the shape, dtype and device of another."""
        generator = torch.Generator().manual_seed(self.seed)
        normal = torch.randn(value.shape, generator=generator)
        return (normal * self.deviation + self.mean).to(value.device, value.dtype)


@dataclass(frozen=True, slots=True)
class Source:
    """An input of a part.

    Attributes:
        value: a tensor, or a Python number.
        made: how to make the value; None for the step's own value or a slice of it.
    """

    value: Any
    made: Constant | Drawn | None = None


Fails = Callable[[dict[str, Any]], bool]


def smaller(inputs: dict[str, Source], ops: Collection[fx.Node], fails: Fails) -> dict[str, Source]:
    """Return smaller inputs with which a part still fails.

    Args:
        inputs: the part's inputs by node.
        ops: the part's ops.
        fails: whether the part fails with other values.
    """
    # Kernels of other ops may not check that the sizes of their operands agree.
    if all(is_pointwise(node) or _rule(node) in _CHECKED for node in ops):
        inputs = _sliced(inputs, fails)
    tensors = [name for name, source in inputs.items() if isinstance(source.value, torch.Tensor)]
    for name in sorted(tensors, key=lambda name: -inputs[name].value.numel()):
        value = inputs[name].value
        if value.numel() > INLINE:
            for made in _stand_ins(value):
                other = {**inputs, name: Source(made.like(value), made)}
                if fails(_values(other)):
                    inputs = other
                    break
    return inputs


def _rule(node: fx.Node) -> str:
    rule = TORCH_RULES.get(op_name(node))
    return rule.name if rule is not None else ""


def _values(inputs: dict[str, Source]) -> dict[str, Any]:
    return {name: source.value for name, source in inputs.items()}


def _sliced(inputs: dict[str, Source], fails: Fails) -> dict[str, Source]:
    """Halve dimensions as long as the part fails; equal dimensions first together, then alone."""
    changed = True
    while changed:
        changed = False
        for group in _groups(inputs):
            while (half := _halved(inputs, group, fails)) is not None:
                inputs, changed = half, True
    return inputs


def _groups(inputs: dict[str, Source]) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield groups of dimensions, as input name and index, to halve together."""
    sizes = {
        (name, dim): size
        for name, source in inputs.items()
        if isinstance(source.value, torch.Tensor)
        for dim, size in enumerate(source.value.shape)
        if size > 1
    }
    for size in sorted(set(sizes.values()), reverse=True):
        alike = [dimension for dimension in sizes if sizes[dimension] == size]
        yield tuple(alike)
        if 2 < len(alike) <= _PAIRED:
            yield from (pair for pair in combinations(alike, 2) if pair[0][0] != pair[1][0])
        if len(alike) > 1:
            yield from ((dimension,) for dimension in alike)


def _halved(
    inputs: dict[str, Source], group: tuple[tuple[str, int], ...], fails: Fails
) -> dict[str, Source] | None:
    """Return the inputs with one half along some dimensions, if the part fails with it."""
    sizes = {inputs[name].value.shape[dim] for name, dim in group}
    size = min(sizes)
    if size < 2 or len(sizes) > 1:
        return None
    for start, length in ((0, size // 2), (size // 2, size - size // 2)):
        other = dict(inputs)
        for name, dim in group:
            part = other[name].value.narrow(dim, start, length)
            other[name] = Source(part.clone())
        if fails(_values(other)):
            return other
    return None


def _stand_ins(value: torch.Tensor) -> Iterator[Constant | Drawn]:
    """Yield simpler tensors to try instead of a tensor, the simplest first."""
    numbers = value.detach().flatten().cpu()
    if value.is_complex():
        return
    if not value.is_floating_point():
        yield from (Constant(number.item()) for number in (numbers[0], numbers.max()))
        return
    wide = numbers.double()
    finite = wide[wide.isfinite()]
    if not finite.numel():
        yield Constant(float(wide[0]))
        return
    mean = float(finite.mean())
    yield Constant(float(torch.tensor(mean).to(value.dtype)))
    yield Constant(float(finite[finite.abs().argmax()]))
    if finite.numel() > 1:
        yield Drawn(0, mean, float(finite.std()))
