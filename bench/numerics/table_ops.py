"""Calls of the op table's ops on numbers of any size, for random programs.

A call is a sample of `tests/programs/op_samples.py` whose FP32 tensors get other numbers. What an
op does not take (a matrix that has no Cholesky factor, a probability of 1e6) becomes the sample's
own numbers, a little changed.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_flatten, tree_unflatten

from bench.root import ROOT
from mpcompile.plan.op_table import TORCH_RULES

sys.path.append(str(ROOT / "tests"))

from programs.op_samples import Sample, samples

REFUSALS = (RuntimeError, TypeError, NotImplementedError, IndexError, ValueError)
"""What an op raises for numbers or dtypes that it does not take."""
_MADE = ("constant", "random")
"""Rows of ops that compute nothing from what they read."""
_UNCHECKED = "linalg_eigvals"
"""An op that gives infinite numbers to LAPACK, which may end the process; linalg_eig checks them
(torch 2.13)."""
_MOST = 4096
"""Larger samples are left out."""


@dataclass(frozen=True, slots=True)
class TableOp:
    """One op of the table.

    Attributes:
        name: the op.
        sample: how it is called.
        tensors: the FP32 tensors among its arguments.
    """

    name: str
    sample: Sample
    tensors: tuple[Tensor, ...]

    def call(self, numbers: Tensor, raw: bool, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the result on other numbers as a tensor of their shape and dtype.

        Args:
            numbers: the numbers; they are repeated to fill the arguments.
            raw: give them as they are; else they change the sample by a hundredth.
            tensors: the sample's FP32 tensors, in FP32 or FP64.
        """
        given = []
        for tensor in tensors:
            own = torch.take(numbers, _places(tuple(tensor.shape), numbers.numel()))
            given.append(own if raw else tensor * (1 + torch.tanh(own) / 100))
        if self.name == _UNCHECKED and get_proxy_mode() is None and not _are_finite(given):
            raise ValueError(f"{self.name} takes finite numbers only")
        leaves, spec = tree_flatten((self.sample.args, self.sample.kwargs))
        rest = iter(given)
        held = [next(rest) if _is_full(leaf) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(held, spec)
        result = _first(self.sample.call(args, kwargs))
        if result.is_complex():
            result = torch.view_as_real(result)
        places = _places(tuple(numbers.shape), result.numel())
        return torch.take(result.to(numbers.dtype), places)


@cache
def _places(shape: tuple[int, ...], count: int) -> Tensor:
    """Return the places of the numbers that fill a tensor from one of `count` numbers, in turn."""
    return (torch.arange(math.prod(shape)) % count).reshape(shape)


def _are_finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _is_full(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype is torch.float32


def _first(result: Any) -> Tensor:
    """Return the first tensor with numbers in a result."""
    found = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor) and leaf.numel()]
    return found[0]


@cache
def table_ops() -> tuple[TableOp, ...]:
    """Return the ops that random programs draw, in the order of their names."""
    names = [name for name, rule in TORCH_RULES.items() if rule.name not in _MADE]
    found = (_usable(name) for name in sorted(names) if hasattr(torch.ops.aten, name))
    return tuple(op for op in found if op is not None)


def table_op(number: int) -> TableOp:
    """Return one of `table_ops`, in turn."""
    found = table_ops()
    return found[number % len(found)]


def _usable(name: str) -> TableOp | None:
    for op in _calls(name):
        try:
            results = [
                op.call(torch.linspace(0.1, 1.0, 128).reshape(8, 16).to(dtype), False, tensors)
                for dtype, tensors in ((torch.float32, op.tensors), *[_in_double(op)] * 2)
            ]
        except REFUSALS:
            continue
        if torch.equal(results[1], results[2]) and bool(results[0].isfinite().all()):
            return op
    return None


def _in_double(op: TableOp) -> tuple[torch.dtype, tuple[Tensor, ...]]:
    return torch.float64, tuple(tensor.double() for tensor in op.tensors)


def _calls(name: str) -> Iterator[TableOp]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    for sample in samples(name, 6):
        leaves, _ = tree_flatten((sample.args, sample.kwargs))
        tensors = tuple(leaf for leaf in leaves if _is_full(leaf))
        sizes = [tensor.numel() for tensor in tensors]
        if sizes and all(0 < size <= _MOST for size in sizes):
            yield TableOp(name, sample, tensors)
