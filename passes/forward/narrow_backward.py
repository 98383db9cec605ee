"""Let the backward of a custom autograd Function run Tensor Core ops as its forward does."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.program.derivatives.own_backward import OwnBackward, body_of, is_tensor_core
from mpcompile.torch_private.ops import op_name

_NARROW = (torch.float16, torch.bfloat16)


def narrow_backward(module: fx.GraphModule) -> int:
    """Give such Functions the 16-bit dtype of their forward; return their number.

    A Function without a Tensor Core op in 16 bits in its forward keeps its backward in FP32. So
    does a Function that asks for FP32.

    Example:
        >>> module = forward(MatmulByHand(), f32(2, 8), until="narrow_backward")
        >>> before_and_after(narrow_backward, module)
        - own_backward  tuple  own_backward [matmul] [p_model_w] [detach,detach_1] of=By
        + own_backward  tuple  own_backward [matmul] [p_model_w] [detach,detach_1] of=By narrow=f16
    """
    count = 0
    for node in module.graph.nodes:
        own = node.target
        if not isinstance(own, OwnBackward) or "narrow" in node.kwargs or own.fp32:
            continue
        dtypes = {op.meta["val"].dtype for op in body_of(node) if is_tensor_core(op_name(op))}
        narrow = [dtype for dtype in _NARROW if dtype in dtypes]
        if narrow:
            node.kwargs = {**node.kwargs, "narrow": narrow[0]}
            count += 1
    return count
