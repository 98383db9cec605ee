"""The number of floating-point operations of a graph's matmul-like ops.

An op is matmul-like if it has a formula here: the ops of torch's own table
(`torch.utils.flop_counter`: matmuls, convolutions, attention, forward and backward), attention's
CPU kernel, which that table lacks, and cuDNN's recurrent layers. A multiplication and an addition
are two operations. All other ops are loops whose time depends on memory; they count 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import flop_counter

from mpcompile.program.node_tensors import known_size, shape_of
from mpcompile.torch_private.ops import given, op_name


def is_matmul_like(node: fx.Node) -> bool:
    """Whether there is a formula for the node's op."""
    return op_name(node) in _OWN or _formula_of_torch(node) is not None


def flops(node: fx.Node) -> int:
    """Return the FLOPs of a matmul-like node by its formula; 0 for any other."""
    own, formula = _OWN.get(op_name(node)), _formula_of_torch(node)
    if own is not None:
        return own(node)
    if formula is None:
        return 0
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda item: item.meta["val"])
    return known_size(formula(*args, **kwargs, out_val=node.meta["val"]))


def least_flops(node: fx.Node) -> int:
    """Return the FLOPs of a kernel that skips all scores that a causal mask hides."""
    return int(flops(node) * _visible_share(node))


def _formula_of_torch(node: fx.Node) -> Callable[..., Any] | None:
    packet = getattr(node.target, "overloadpacket", None)
    found: Callable[..., Any] | None = flop_counter.flop_registry.get(packet)
    return found


def _visible_share(node: fx.Node) -> float:
    """Return the share of its scores that an attention needs; if causal, i + 1 keys for query i."""
    name = op_name(node)
    if "attention" not in name or not (options := given(node)).get("is_causal"):
        return 1.0
    dimension = -2 if name.startswith("_scaled_dot_product") else -3
    queries, keys = (shape_of(options[key].meta["val"])[dimension] for key in ("query", "key"))
    seen = min(queries, keys)
    pairs = seen * (seen + 1) // 2 + (queries - seen) * keys
    return float(pairs / (queries * keys))


def _shapes(node: fx.Node, *names: str) -> list[torch.Size]:
    options = given(node)
    return [torch.Size(shape_of(options[name].meta["val"])) for name in names]


def _attention(node: fx.Node) -> int:
    return int(flop_counter.sdpa_flop_count(*_shapes(node, "query", "key", "value")))


def _attention_backward(node: fx.Node) -> int:
    shapes = _shapes(node, "grad_out", "query", "key", "value")
    return int(flop_counter.sdpa_backward_flop_count(*shapes))


def _convolution_backward(node: fx.Node) -> int:
    """Return forward's FLOPs once for each requested gradient that is a convolution itself.

    torch's formula counts a weight's gradient as if there were one group.
    """
    options = given(node)
    x, weight, gradient = map(list, _shapes(node, "input", "weight", "grad_output"))
    once = flop_counter.conv_flop_count(x, weight, gradient, transposed=options["transposed"])
    return int(once * sum(options["output_mask"][:2]))


def _recurrent(node: fx.Node) -> int:
    """Return the FLOPs of recurrent layers: each weight matrix times each element of a sequence."""
    options = given(node)
    # The batch dimension may come first; the product is the same.
    steps, batch, _ = shape_of(options["input"].meta["val"])
    weights = [item.meta["val"] for item in options["weights"]]
    return int(2 * steps * batch * sum(item.numel() for item in weights if item.dim() == 2))


def _recurrent_backward(node: fx.Node) -> int:
    """Return twice forward's FLOPs: the gradients of the two operands of each product."""
    return 2 * _recurrent(node)


_OWN: dict[str, Callable[[fx.Node], int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "convolution_backward": _convolution_backward,
    "cudnn_rnn": _recurrent,
    "cudnn_rnn_backward": _recurrent_backward,
}
"""Formulas that torch lacks or that differ from torch's, by op name."""
