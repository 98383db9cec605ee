"""Ops that add 20,000 ones to one element: which kernels do so in 16 bits, and which in FP32?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

A = torch.ops.aten
COUNT = 20_000
"""Ones that an op adds up to one element: FP16 holds it, and a sum in FP16 ends at 2,048."""


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype)


def _pooled(ones: Tensor, name: str) -> Tensor:
    """Backward of a maximum of one element that `COUNT` places read."""
    axes = int(name[-2])
    x = _zeros(ones, *[1] * (axes + 2))
    size = [1] * (axes - 1) + [COUNT]
    _, places = getattr(A, name)(x, size)
    result: Tensor = getattr(A, f"{name}_backward")(ones.view(1, 1, *size), x, places)
    return result


IN_16_BITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_put": lambda one, at: A.index_put(_zeros(one, 2), [at], one, True),
    "put": lambda one, at: A.put(_zeros(one, 2), at, one, True),
    "index_add": lambda one, at: A.index_add(_zeros(one, 2), 0, at, one),
    "embedding": lambda one, at: A.embedding_dense_backward(one[:, None], at, 2, -1, False),
    "adaptive_avg_pool2d": lambda one, _at: A._adaptive_avg_pool2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1)
    ),
    "adaptive_avg_pool3d": lambda one, _at: A._adaptive_avg_pool3d_backward(
        one.view(1, 1, 1, 1, -1), _zeros(one, 1, 1, 1, 1, 1)
    ),
    "adaptive_max_pool2d": lambda one, _at: _pooled(one, "adaptive_max_pool2d"),
    "adaptive_max_pool3d": lambda one, _at: _pooled(one, "adaptive_max_pool3d"),
    "replication_pad1d": lambda one, _at: A.replication_pad1d_backward(
        one.view(1, 1, -1), _zeros(one, 1, 1, 1), [COUNT - 1, 0]
    ),
    "replication_pad2d": lambda one, _at: A.replication_pad2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1), [COUNT - 1, 0, 0, 0]
    ),
    "grid_sampler_2d": lambda one, _at: A.grid_sampler_2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1), _zeros(one, 1, 1, COUNT, 2),
        0, 0, False, [True, True],
    )[0],
}  # fmt: skip
"""Kernels of a CPU that add in the dtype of their result. Each adds `COUNT` ones to one element."""
IN_FP32: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda one, _at: one.sum(0),
    "sum of rows": lambda one, _at: one[:, None].expand(-1, 8).sum(0),
    "cumsum": lambda one, _at: one.cumsum(0),
    "scatter_add": lambda one, at: A.scatter_add(_zeros(one, 2), 0, at, one),
    "scatter_add of rows": lambda one, at: A.scatter_add(
        _zeros(one, 2, 8), 0, at[:, None].expand(-1, 8), one[:, None].expand(-1, 8)
    ),
    "scatter_reduce": lambda one, at: A.scatter_reduce(_zeros(one, 2), 0, at, one, "sum"),
    "dot": lambda one, _at: one @ one,
    "matmul": lambda one, _at: one[None] @ one[:, None],
    "upsample_nearest1d": lambda one, _at: A.upsample_nearest1d_backward(
        one.view(1, 1, -1), [COUNT], [1, 1, 1], None
    ),
    "upsample_linear1d": lambda one, _at: A.upsample_linear1d_backward(
        one.view(1, 1, -1), [COUNT], [1, 1, 1], False, None
    ),
    "bias of a convolution": lambda one, _at: A.convolution_backward(
        one.view(1, 1, -1), one.view(1, 1, -1), one[:1].view(1, 1, 1),
        [1], [1], [0], [1], False, [0], 1, [True, True, True],
    )[2],
}  # fmt: skip
"""Kernels that add in FP32 and round once."""
