"""Count the casts, written bytes and saved bytes of a recorded gradient graph.

The measure reads dtypes, shapes and edges only. *Written* bytes follow a simple model of a fusing
backend. A forward tensor is written to memory if

- its op is no part of a fused kernel (matmul, convolution, attention, RNN, max
  pooling, embedding, indexing, concatenation: all that `fuses` denies), or
- such an op, backward or the caller reads it, or
- several fused ops read it; each of them computes casts and constants again.

Average pools and interpolations read windows of memory: their input is written, except a cast,
which they compute as they read. A view counts as the tensor that it views. *Saved* are tensors that
forward makes and backward reads. Copies of parameters are counted apart: autocast writes them in
forward, our update writes them once per step. Statistics of a norm count 4 bytes per number for any
dtype of the CPU's kernel, because CUDA's kernels keep FP32.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.marks import BACKWARD, BACKWARD_SEED
from mpcompile.step.liveness import storages, tensor_bytes
from mpcompile.torch_private.ops import is_pointwise, op_name

_REDUCTION = frozenset(
    "_softmax _log_softmax mean sum amax var_mean nll_loss_forward nll_loss2d_forward mse_loss "
    "binary_cross_entropy_with_logits".split()
)
_NORM = frozenset(
    "native_layer_norm native_group_norm _native_batch_norm_legit_functional native_batch_norm "
    "_fused_rms_norm".split()
)
_WINDOW = frozenset(
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d".split()
)
_CONSTANT = frozenset(
    "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor "
    "arange".split()
)


@dataclass(frozen=True, slots=True)
class Measures:
    """Counts and bytes of one gradient graph.

    Attributes:
        forward_casts: casts in forward, without those of parameters.
        casts: the same in forward and backward.
        weight_casts: casts of parameters.
        cast_bytes: bytes that `casts` read and write if each is a kernel of its own.
        written_casts: casts in forward whose result is written to memory under fusion.
        written: bytes that forward writes under fusion, with copies of parameters.
        saved: bytes kept for backward, without copies of parameters.
        saved_wide: bytes of `saved` that are FP32.
        weight_copies: bytes of 16-bit copies of parameters.
    """

    forward_casts: int
    casts: int
    weight_casts: int
    cast_bytes: int
    written_casts: int
    written: int
    saved: int
    saved_wide: int
    weight_copies: int


def measure(graph: fx.Graph, parameters: frozenset[str]) -> Measures:
    """Measure a gradient graph whose backward nodes carry ``meta["backward"]``.

    Args:
        graph: a graph of ATen ops without mutation, with ``meta["val"]`` on every node.
        parameters: names of the placeholders that are parameters.
    """
    base = storages(graph)
    weights: list[fx.Node] = []
    casts: list[fx.Node] = []
    for node in graph.nodes:
        if changes_width(node):
            is_weight = base[source_of(node)].name in parameters
            (weights if is_weight else casts).append(node)
    copies = set(weights)
    made = [
        node
        for node in graph.nodes
        if node.op == "call_function" and base[node] is node and is_tensor(node)
        if not _backward(node) and node not in copies
    ]
    readers = _readers(graph, base)
    written = {node for node in made if _is_written(node, readers[node])}
    saved = {node for node in made if any(_backward(reader) for reader in readers[node])}
    early = [cast for cast in casts if not _backward(cast)]
    weight_copies = sum(_bytes(cast) for cast in weights if not _backward(cast))
    return Measures(
        forward_casts=len(early),
        casts=len(casts),
        weight_casts=len(weights),
        cast_bytes=sum(_bytes(cast) + _bytes(source_of(cast)) for cast in casts),
        written_casts=len(written.intersection(early)),
        written=sum(_bytes(node) for node in written) + weight_copies,
        saved=sum(_bytes(node) for node in saved),
        saved_wide=sum(_bytes(n) for n in saved if n.meta["val"].dtype is torch.float32),
        weight_copies=weight_copies,
    )


def fuses(node: fx.Node) -> bool:
    """Return whether a fusing backend joins the op with ops before or after it in a kernel."""
    if node.target is operator.getitem:
        return fuses(node.all_input_nodes[0])
    named = _REDUCTION | _NORM | _WINDOW | _CONSTANT
    return is_cast(node) or is_pointwise(node) or op_name(node) in named


def changes_width(node: fx.Node) -> bool:
    """Return whether the node casts between FP32 and a 16-bit format."""
    kinds = {torch.float32, torch.float16, torch.bfloat16}
    if not is_cast(node):
        return False
    both = {node.meta["val"].dtype, source_of(node).meta["val"].dtype}
    return len(both) == 2 and both <= kinds


def is_tensor(node: fx.Node) -> bool:
    """Return whether the node's result is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def _backward(node: fx.Node) -> bool:
    return node in BACKWARD


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    later = node.target is operator.getitem and node.args[1] != 0
    if later and op_name(node.all_input_nodes[0]) in _NORM:
        return 4 * int(value.numel())
    return tensor_bytes(value)


def _readers(graph: fx.Graph, base: dict[fx.Node, fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Return the readers of each storage, also those through a view.

    Views themselves do not read. Neither does the seed of backward, which the loss scale replaces.
    """
    readers: dict[fx.Node, set[fx.Node]] = {node: set() for node in graph.nodes}
    for node in graph.nodes:
        reads = base[node] is node and node.target is not operator.getitem
        if reads and node not in BACKWARD_SEED:
            for item in node.all_input_nodes:
                readers[base[item]].add(node)
    return readers


def _is_written(node: fx.Node, readers: set[fx.Node]) -> bool:
    if not readers:
        return False
    if not fuses(node) or any(_backward(reader) or not fuses(reader) for reader in readers):
        return True
    if is_cast(node) or op_name(node) in _CONSTANT:
        return False
    return len(readers) > 1 or any(op_name(reader) in _WINDOW for reader in readers)
