"""Backward of FP16 convolutions in the time of FP32: PyTorch's own on a CPU takes 80 times it."""

from __future__ import annotations

from typing import Any

import torch

from mpcompile.torch_private.tracing import DispatchMode


class QuickHalfConvolutions(DispatchMode):
    """Computes these in FP32 and rounds the results to FP16 once, as tensor cores do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        is_half = args and isinstance(args[0], torch.Tensor) and args[0].dtype is torch.float16
        if func is not torch.ops.aten.convolution_backward.default or not is_half:
            return func(*args, **(kwargs or {}))
        full = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
        found = func(*full, **(kwargs or {}))
        return tuple(None if gradient is None else gradient.half() for gradient in found)
