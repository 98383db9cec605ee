"""Let ops that add up many 16-bit terms in place add them in FP32: what an index reads often.

The backward of an op that repeats, gathers or pools adds to each element the gradients of all that
were made of it, one after the other, in the dtype of its result. In 16 bits such a sum stops to
grow at 2,048 (FP16) or 256 (BF16). Paper, section 3.3: additions accumulate in FP32.
`python -m bench.numerics.sum_kernels` measures which kernels of torch do so by themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import fx

from mpcompile.program.casts import narrow_readers, wide
from mpcompile.program.node_tensors import NARROW, count_of
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tensors import with_dtype

LEAST = 16
"""Terms of one element from which on an op is changed, where its arguments bound their number."""
ADDS_NARROW = frozenset(
    "index_put _unsafe_index_put index_add put embedding_dense_backward "
    "_embedding_bag_dense_backward unfold_backward avg_pool2d_backward avg_pool3d_backward "
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
    "adaptive_max_pool2d_backward adaptive_max_pool3d_backward fractional_max_pool2d_backward "
    "fractional_max_pool3d_backward replication_pad1d_backward replication_pad2d_backward "
    "replication_pad3d_backward col2im grid_sampler_2d_backward grid_sampler_3d_backward".split()
)
"""The ops whose kernels add in the dtype of their result, on a CPU or on CUDA."""
_FLAGGED = {"index_put": 3, "_unsafe_index_put": 3, "put": 3}
"""Ops that add only if an argument says so, with the place of the argument."""


def accumulate_in_full(module: fx.GraphModule) -> int:
    """Widen what such ops read and write; return their number.

    Each term is rounded as before, the sum once, or not at all for readers that widen it. Windows
    that hardly overlap, as those of most pools, stay as they are.

    Example:
        >>> def program(gradient, places):
        ...     return torch.ops.aten.embedding_dense_backward(gradient, places, 2, -1, False)
        ...
        >>> module = graph(program, gradient=f16(64, 4), places=torch.zeros(64, dtype=torch.long))
        >>> before_and_after(accumulate_in_full, module)
        + _to_copy_default  f32[64,4]  _to_copy gradient dtype=f32
        - embedding_dense_backward  f16[2,4]  embedding_dense_backward gradient places 2 -1 False
        + embedding_dense_backward  f32[2,4]  embedding_dense_backward
            _to_copy_default places 2 -1 False
        - return  embedding_dense_backward
        + _to_copy_default_1  f16[2,4]  _to_copy embedding_dense_backward dtype=f16
        + return  _to_copy_default_1
    """
    found = 0
    for node in list(module.graph.nodes):
        if op_name(node) in ADDS_NARROW and _adds(node) and _terms(node) >= LEAST:
            results = _narrow_results(node)
            if not results:
                continue
            for term in node.all_input_nodes:
                if _is_narrow(term):
                    node.replace_input_with(term, wide(term, node))
            for result in results:
                dtype = result.meta["val"].dtype
                result.meta = {**result.meta, "val": with_dtype(result.meta["val"], torch.float32)}
                narrow_readers(result, dtype)
            found += 1
    return found


def _adds(node: fx.Node) -> bool:
    place = _FLAGGED.get(op_name(node))
    return place is None or (len(node.args) > place and node.args[place] is True)


def _terms(node: fx.Node) -> int:
    """Return a bound for the number of terms of one element."""
    name = op_name(node)
    args: Any = node.args
    if name == "unfold_backward":
        return _overlap([args[3]], [args[4]])
    if name == "col2im":
        return _overlap(args[2], args[5])
    if name.startswith(("avg_pool", "max_pool")):
        return _overlap(args[2], (args[3] if len(args) > 3 else []) or args[2])
    if name.startswith("replication_pad"):
        sides = [max(0, side) for side in args[2]]
        return prod(1 + left + right for left, right in zip(sides[::2], sides[1::2], strict=True))
    if "adaptive" in name:
        return ceil(count_of(args[0].meta["val"]) / count_of(args[1].meta["val"]))
    narrow = (item.meta["val"] for item in node.all_input_nodes if _is_narrow(item))
    return max(map(count_of, narrow), default=0)


def _overlap(sizes: Sequence[int], steps: Sequence[int]) -> int:
    """Return how many windows one element can be in."""
    lengths = list(steps) * (len(sizes) // len(steps))
    return prod(ceil(size / step) for size, step in zip(sizes, lengths, strict=True))


def _narrow_results(node: fx.Node) -> list[fx.Node]:
    if isinstance(node.meta.get("val"), torch.Tensor):
        return [node] if _is_narrow(node) else []
    return [one for one in node.users if one.target is operator.getitem and _is_narrow(one)]


def _is_narrow(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in NARROW
