"""Let the backward of a custom autograd Function run Tensor Core ops as its forward does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from mpcompile.program.derivatives.own_backward import OwnBackward, body_of, is_tensor_core
from mpcompile.torch_private.ops import op_name

_NARROW = (torch.float16, torch.bfloat16)


def narrow_backward(module: fx.GraphModule) -> int:
    """Give such Functions the 16-bit dtype of their forward; return their number.

    A Function whose forward has no Tensor Core op in 16 bits keeps its backward in FP32.

    Example:
        >>> module = forward(ByHand(), f32(4, 8))
        >>> own_dtypes(module), narrow_backward(module), own_dtypes(module)
        ([None], 1, [torch.float16])
    """
    count = 0
    for node in module.graph.nodes:
        own = node.target
        if not isinstance(own, OwnBackward) or own.narrow is not None or own.fp32:
            continue
        for op in body_of(node):
            dtype = getattr(op.meta.get("val"), "dtype", None)
            if is_tensor_core(op_name(op)) and dtype in _NARROW:
                node.target = replace(own, narrow=dtype)
                count += 1
                break
    return count
