"""Private parts of PyTorch's ONNX exporter: which ops it translates."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from torch.onnx._internal.exporter._registration import ONNXRegistry

from mpcompile.torch_private.tracing import DispatchMode


class Decomposed(DispatchMode):
    """Writes each op that the exporter would keep and not translate in others, as torch does.

    The exporter decomposes what it cannot translate, except for ops that torch decomposes itself
    before autograd, because it does not expect to meet them. A formula of autograd calls such ops
    directly: in torch 2.13 ``silu_backward`` and ``mish_backward``.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "aten" and func._can_decompose() and func not in _translated():
            with self:
                found = func.decompose(*args, **kwargs or {})
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs or {})


@cache
def _translated() -> frozenset[Any]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it logs which optional packages are missing
    try:
        return frozenset(ONNXRegistry.from_torchlib().functions)
    finally:
        logging.disable(before)
