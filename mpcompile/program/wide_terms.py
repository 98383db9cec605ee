"""Casts around an op that shall add in FP32: its 16-bit terms, and its result for other readers."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.program.casts import CAST, is_cast, source_of
from mpcompile.program.marks import BACKWARD
from mpcompile.torch_private.tensors import with_dtype


def wide(term: fx.Node, reader: fx.Node) -> fx.Node:
    """Return a term in FP32; one that was only just narrowed is taken as it was before."""
    if is_cast(term) and source_of(term).meta["val"].dtype is torch.float32:
        return source_of(term)
    return _cast(term, torch.float32, reader)


def narrow_readers(result: fx.Node, dtype: torch.dtype) -> None:
    """Give a result that is FP32 now to its readers as before.

    Readers that widen it read it itself.

    Args:
        result: its readers still expect `dtype`.
        dtype: 16 bits.
    """
    casts = [one for one in result.users if is_cast(one) and one.kwargs["dtype"] is torch.float32]
    others = [one for one in result.users if one not in casts]
    for cast in casts:
        cast.replace_all_uses_with(result)
        cast.graph.erase_node(cast)
    if others:
        rounded = _cast(result, dtype, result.next)
        for reader in others:
            reader.replace_input_with(result, rounded)


def _cast(node: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
    with node.graph.inserting_before(before):
        made = node.graph.call_function(CAST, (node,), {"dtype": dtype})
    made.meta = {**node.meta, "val": with_dtype(node.meta["val"], dtype)}
    if node in BACKWARD and before in BACKWARD:
        BACKWARD[made] = True
    return made
