"""Compute a linear and the cross entropy of its result in chunks of rows (`chunked_head`).

A language model's logits are its largest tensor by far: a number for each token and each word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.passes.forward.join_matmuls import arguments_of_linear
from mpcompile.program.casts import is_cast
from mpcompile.program.chunked_head import chunked_head
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import call
from mpcompile.torch_private.ops import given, op_name

_ATEN = torch.ops.aten
_SHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
_SAME = ("contiguous", "clone", "alias")
_REDUCTIONS = {1: True, 2: False}
"""ATen's numbers for the reductions mean and sum: whether it is a mean."""


@dataclass(frozen=True)
class ChunkHead:
    """Replace large heads.

    A head is a 16-bit linear, then views that keep its rows whole, slices of rows and casts, then a
    ``cross_entropy_loss`` of class indices, reduced, without weights and label smoothing. No other
    node may read the tensors between. The gradient of the weight is added up in FP32, which costs
    a read and a write of it for each chunk. So a chunk has at least that many bytes. A head is
    left alone if logits and their gradient need fewer bytes than those sums and two chunks, or if
    the number of rows is open.

    Attributes:
        least: the fewest bytes of 16-bit logits for which a head is replaced.
        chunk: the bytes that the 16-bit logits of a chunk should have.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, x, y):
        ...         return nn.functional.cross_entropy(super().forward(x), y)
        ...
        >>> batch = (f32(64, 2), torch.zeros(64, dtype=torch.int64))
        >>> before_and_after(ChunkHead(least=1, chunk=64), forward(Net(2, 8), *batch))
        + chunked_head  f32[]  chunked_head batch_0_f16 p_model_weight_f16 p_model_bias_f16
            batch_1 classes=8 rows=4 ignored=-100 mean=True
        + return  chunked_head
        - linear  f16[64,8]  linear batch_0_f16 p_model_weight_f16 p_model_bias_f16
        - linear_f32  f32[64,8]  _to_copy linear dtype=f32
        - cross_entropy_loss  f32[]  cross_entropy_loss linear_f32 batch_1
        - return  cross_entropy_loss
    """

    least: int = 64 << 20
    chunk: int = 64 << 20

    def __call__(self, module: fx.GraphModule) -> int:
        """Rewrite a forward graph that has its casts; return the number of heads replaced."""
        found = 0
        for loss in module.graph.find_nodes(
            op="call_function", target=_ATEN.cross_entropy_loss.default
        ):
            path = _path(loss)
            rows = self._rows(path) if path else 0
            if rows:
                _replace(module.graph, loss, path, rows)
                found += 1
        return found

    def _rows(self, path: list[fx.Node]) -> int:
        """Return the rows of a chunk, or 0 if chunks are not worth it."""
        count = path[-1].meta["val"].shape[0]
        if isinstance(count, torch.SymInt):  # the number of chunks must be known now
            return 0
        columns = path[0].meta["val"].shape[-1]
        features = path[0].args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
        logits, sums = 2 * count * columns, 4 * columns * features
        target = max(self.chunk, sums)
        if logits < self.least or logits <= sums + target:
            return 0
        least = math.ceil(logits / target)
        even = [n for n in range(least, 2 * least) if count % n == 0 and count // n % 8 == 0]
        rows: int = math.ceil(count / (even or [least])[0])
        return rows


def _path(loss: fx.Node) -> list[fx.Node]:
    """Return the nodes from a head's linear to its logits, or [] if this is not a head."""
    options = given(loss)
    reduced = options["reduction"] in _REDUCTIONS
    if options["weight"] is not None or options["label_smoothing"] or not reduced:
        return []
    logits = options["self"]
    value, target = logits.meta["val"], options["target"].meta["val"]
    if value.dim() != 2 or value.dtype is not torch.float32 or target.dtype is not torch.int64:
        return []
    path = [logits]
    while op_name(path[0]) != "linear":
        node = path[0]
        if len(node.users) > 1 or not (_keeps_rows(node) or _is_part_of_rows(node)):
            return []
        path.insert(0, node.all_input_nodes[0])
    linear = path[0].meta["val"]
    fits = len(path[0].users) == 1 and linear.dtype in NARROW and linear.dim() > 1
    return path if fits else []


def _keeps_rows(node: fx.Node) -> bool:
    """Whether the node returns rows of its input unchanged."""
    name, rank = op_name(node), node.meta["val"].dim()
    if name in _SHAPES:
        source = node.all_input_nodes[0].meta["val"]
        return bool(node.meta["val"].shape[-1] == source.shape[-1])
    if name == "slice":
        return (*node.args, 0)[1] not in (-1, rank - 1)
    return name in _SAME or is_cast(node)


def _is_part_of_rows(node: fx.Node) -> bool:
    """Whether the node returns the first columns of a linear: the real ones of a padded linear."""
    return (
        op_name(node) == "slice"
        and op_name(node.all_input_nodes[0]) == "linear"
        and node.args[1:3] == (-1, 0)
        and len(node.args) == 4
    )


def _replace(graph: fx.Graph, loss: fx.Node, path: list[fx.Node], rows: int) -> None:
    linear, *between = path
    x, weight, bias = arguments_of_linear(linear)
    given_to_loss = given(loss)
    options = {
        "classes": path[-1].meta["val"].shape[-1],
        "rows": rows,
        "ignored": given_to_loss["ignore_index"],
        "mean": _REDUCTIONS[given_to_loss["reduction"]],
    }
    with graph.inserting_before(loss):
        for node in between:
            if op_name(node) == "slice" and _keeps_rows(node):
                x = call(graph, node.target, x, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]
            elif op_name(node) in _SHAPES:
                shape = [*node.meta["val"].shape[:-1], x.meta["val"].shape[-1]]
                x = call(graph, _ATEN.reshape.default, x, shape)
        new = graph.call_function(chunked_head, (x, weight, bias, given_to_loss["target"]), options)
    new.meta = dict(loss.meta)
    loss.replace_all_uses_with(new)
    for node in (loss, *reversed(path)):
        graph.erase_node(node)
