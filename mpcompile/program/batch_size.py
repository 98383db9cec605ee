"""A batch size that is left open: a symbol in the shapes of a captured program.

The symbol is dimension 0 of the batch's tensors. During capture torch notes each condition on it (a
branch, a reshape to a constant) as a guard, with the line that needs it. Later conditions, from
torch's own choice of kernels, also limit the sizes that one graph accepts.

The data structures of symbols and guards in torch are not public. Checked on the versions of
`mpcompile.torch_private.versions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

LEAST = 2
"""The smallest open size: torch captures a size of 1 differently, because it broadcasts."""

_SIZES = sorted({*range(LEAST, 34), *(2**k + d for k in range(6, 17) for d in (-1, 0, 1))})
"""The sizes for which the guards of a program are tested."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Why a batch size cannot be left open.

    Attributes:
        what: the condition that does not hold for every size.
        where: ``file:line`` that needs the condition; None if no line does.
    """

    what: str
    where: str | None


@dataclass(frozen=True, slots=True, eq=False)
class BatchSize:
    """The open size: the one in which batches of one captured program may differ.

    Attributes:
        symbol: its symbol in shapes.
        environment: torch's shape environment, which holds the guards.
        open_dims: per tensor of the batch whether its dimension 0 has that size.
    """

    symbol: Any
    environment: Any
    open_dims: tuple[bool, ...]
    _known: dict[tuple[int, int], bool] = field(default_factory=dict, repr=False)

    def admits(self, size: int) -> bool:
        """Whether a size satisfies all guards so far, of capture and compilation."""
        key = size, len(self.environment.guards)
        if key not in self._known:
            self._known[key] = self._broken([size]) is None
        return self._known[key]

    def limited_by(self) -> SizeLimit | None:
        """Return a condition that is not true for every size, or None."""
        return self._broken(_SIZES)

    def fixed_by(self) -> SizeLimit | None:
        """Return a condition that is true for one size only, or None."""
        known = self.environment.replace(self.symbol)
        return self._broken([n for n in _SIZES if n != known]) if known.is_number else None

    def _broken(self, sizes: Sequence[int]) -> SizeLimit | None:
        fixed = {
            symbol: number
            for guard in self.environment.guards
            for symbol in guard.expr.free_symbols - {self.symbol}
            if (number := self.environment.replace(symbol)).is_number
        }
        return _broken_guard(self.environment, fixed, sizes)


def find_open_dims(batch: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """Return per tensor whether its dimension 0 has the length of the first such dimension."""
    sizes = [value.shape[0] if value.dim() else None for value in batch]
    first = next((size for size in sizes if size is not None), None)
    return tuple(size is not None and size == first for size in sizes)


def size_of(batch: Sequence[torch.Tensor], open_dims: Sequence[bool]) -> int | None:
    """Return the size of a batch's open dimensions; None if they differ or it cannot be open."""
    sizes = {value.shape[0] for value, is_open in zip(batch, open_dims, strict=True) if is_open}
    return sizes.pop() if len(sizes) == 1 and min(sizes) >= LEAST else None


def dynamic_shapes(open_dims: Sequence[bool]) -> Any:
    """Return the ``dynamic_shapes`` of `torch.export` for a program that takes ``*batch``."""
    return (tuple({0: torch.export.Dim.AUTO} if is_open else None for is_open in open_dims),)


def find_size(batch: Sequence[torch.Tensor], open_dims: Sequence[bool]) -> BatchSize | SizeLimit:
    """Return the size that an exported program has left open, one for all its tensors.

    A dimension that the program fixes is not open, even if it is as long as the batch.

    Args:
        batch: the fake tensors of the batch.
        open_dims: per tensor whether its dimension 0 was captured as a symbol.
    """
    sizes = [value.shape[0] for value, is_open in zip(batch, open_dims, strict=True) if is_open]
    symbol: Any = sizes[0]
    environment = batch[0].fake_mode.shape_env  # type: ignore[attr-defined]
    environment.frozen = False  # after an export, torch would note no more guards
    if not _is_open(symbol):
        broken = _broken_guard(environment, {}, [size for size in _SIZES if size != symbol])
        return broken or SizeLimit(f"batch == {symbol}", None)
    # Comparing sizes that were equal in the example makes them one symbol.
    same = [bool(size == symbol) for size in sizes if _is_open(size)]
    assert all(same)
    found = tuple(
        is_open and _is_open(value.shape[0])
        for value, is_open in zip(batch, open_dims, strict=True)
    )
    made = BatchSize(symbol.node.expr, environment, found)
    return made.limited_by() or made


def _is_open(size: int | torch.SymInt) -> bool:
    """Whether a size is still unknown."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def _broken_guard(
    environment: Any, fixed: Mapping[Any, Any], sizes: Sequence[int]
) -> SizeLimit | None:
    """Return the first guard that is not true for all sizes, with other symbols fixed."""
    for guard in environment.guards:
        condition = guard.expr.subs(fixed)
        symbols = condition.free_symbols
        if any(str(item).startswith("u") for item in symbols):  # decided by data, not by sizes
            continue
        if not all(condition.subs(dict.fromkeys(symbols, size)) for size in sizes):
            location = guard.sloc.framework_loc
            where = (
                f"{location.filename}:{location.lineno}" if hasattr(location, "lineno") else None
            )
            text = str(condition)
            if condition.is_Relational:
                text = f"{condition.lhs} {condition.rel_op} {condition.rhs}"
            for item in symbols:
                text = text.replace(str(item), "batch")
            return SizeLimit(text, where)
    return None
