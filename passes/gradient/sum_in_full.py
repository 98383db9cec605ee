"""Add the terms of long sums in FP32: the gradient of a layer that is used many times.

Autograd adds the gradients of a tensor's readers one after the other, in the dtype that they have.
In 16 bits such a sum stops to grow: ones add up to 2,048 in FP16 and to 256 in BF16. A loop such as
``out = out + h`` is the same chain in forward. Paper, section 3.3: additions accumulate in FP32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from mpcompile.program.casts import narrow_readers, wide
from mpcompile.program.marks import TERMS
from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.tensors import with_dtype

LEAST = 4
"""Terms of the shortest sum that is changed: with three, two roundings are the error of one op."""
_ADD = torch.ops.aten.add.Tensor


def sum_in_full(module: fx.GraphModule) -> int:
    """Widen the terms of 16-bit sums of `LEAST` terms or more; return the number of the sums.

    Each term is rounded as before. The sum is rounded once, or not at all for readers that widen
    it. A fusing backend makes no other kernels of it. A partial sum that something else reads is a
    term.

    Example:
        >>> def program(a, b, c, d):
        ...     return (a + b + c + d).float()
        ...
        >>> module = graph(program, a=f16(4), b=f16(4), c=f16(4), d=f16(4))
        >>> before_and_after(sum_in_full, module)
        - add  f16[4]  add a b
        - add_1  f16[4]  add add c
        - add_2  f16[4]  add add_1 d
        - _to_copy  f32[4]  _to_copy add_2 dtype=f32
        + _to_copy_default  f32[4]  _to_copy a dtype=f32
        - return  _to_copy
        + _to_copy_default_1  f32[4]  _to_copy b dtype=f32
        + add  f32[4]  add _to_copy_default _to_copy_default_1
        + _to_copy_default_2  f32[4]  _to_copy c dtype=f32
        + add_1  f32[4]  add add _to_copy_default_2
        + _to_copy_default_3  f32[4]  _to_copy d dtype=f32
        + add_2  f32[4]  add add_1 _to_copy_default_3
        + return  add_2
    """
    found = sums(module.graph)
    for last in reversed(found):
        _widen(sorted(additions_of(last)), last)
    return len(found)


def sums(graph: fx.Graph) -> list[fx.Node]:
    """Return the last additions of the 16-bit sums of `LEAST` terms or more."""
    adds = [node for node in graph.nodes if _adds(node)]
    whole = [node for node in adds if not any(_is_part(node, user) for user in node.users)]
    return [last for last in whole if len([*additions_of(last)]) + 1 >= LEAST]


def _adds(node: fx.Node) -> bool:
    """Whether a node adds two 16-bit tensors of its own shape."""
    if node.target is not _ADD or node.kwargs or node.meta["val"].dtype not in NARROW:
        return False
    values = [item.meta["val"] for item in node.args if isinstance(item, fx.Node)]
    own = node.meta["val"]
    return len(values) == 2 and all(v.shape == own.shape and v.dtype is own.dtype for v in values)


def _is_part(term: fx.Node, reader: fx.Node) -> bool:
    """Whether a sum is nothing but a term of another sum."""
    return _adds(reader) and list(term.users) == [reader] and reader.args[0] is not reader.args[1]


def additions_of(last: fx.Node) -> Iterator[fx.Node]:
    """Yield the additions of a sum."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [item for item in node.all_input_nodes if _adds(item) and _is_part(item, node)]


def _widen(adds: list[fx.Node], last: fx.Node) -> None:
    inner, narrow = set(adds), last.meta["val"]
    for node in adds:
        for term in node.all_input_nodes:
            if term not in inner:
                node.replace_input_with(term, wide(term, node))
        node.meta = {**node.meta, "val": with_dtype(node.meta["val"], torch.float32)}
    TERMS[last] = len(adds) + 1
    narrow_readers(last, narrow.dtype)
