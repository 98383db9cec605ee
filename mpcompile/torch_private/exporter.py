"""Private parts of PyTorch's ONNX exporter: which ops it translates, and which torch decomposes."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from torch._decomp import decomposition_table
from torch.onnx._internal.exporter._registration import ONNXRegistry

from mpcompile.torch_private.tracing import DispatchMode


class Decomposed(DispatchMode):
    """Writes each op that the exporter would keep and not translate in others, as torch does.

    The exporter decomposes what it cannot translate, except for ops that torch decomposes itself
    before autograd, because it does not expect to meet them. A formula of autograd calls such ops
    directly: in torch 2.13 ``silu_backward`` and ``mish_backward``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "aten" and func._can_decompose() and not is_translated(func):
            with self:
                found = func.decompose(*args, **kwargs or {})
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs or {})


def is_translated(op: Any) -> bool:
    """Whether the exporter has a function for an ATen op with its overload."""
    return op in _translated()


def decomposes(op: Any) -> bool:
    """Whether torch writes an ATen op with its overload in other ops."""
    return bool(op._can_decompose()) or op in decomposition_table


@cache
def _translated() -> frozenset[Any]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it logs which optional packages are missing
    try:
        return frozenset(ONNXRegistry.from_torchlib().functions)
    finally:
        logging.disable(before)
