"""Backward keeps the stored 16-bit copy of what was computed in FP32."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import graph_of, run
from torch import fx

from mpcompile.passes.gradient.save_narrow import save_narrow
from mpcompile.program.graph_text import graph_text
from mpcompile.step.liveness import saved_bytes
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name

X = torch.randn(4, 6)


def split(module: fx.GraphModule, first: str) -> fx.GraphModule:
    """Call everything from the first op of this name on backward."""
    backward = False
    for node in module.graph.nodes:
        backward = backward or op_name(node) == first
        if backward and node.op == "call_function":
            node.meta["backward"] = True
    return module


def softmax(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.softmax(x, -1)
    stored = y.half().relu()
    return stored, torch.ops.aten._softmax_backward_data.default(g, y, -1, torch.float32)


def test_softmax_saves_its_16_bit_result() -> None:
    module = split(graph_of(softmax, x=X, g=X), "_softmax_backward_data")
    before = copy_graph(module)
    kept = saved_bytes(module.graph)
    assert save_narrow(module) == 1
    assert saved_bytes(module.graph) == kept / 2
    assert_expected_inline(
        graph_text(module.graph),
        """\
x                       f32[4,6]  input
g                       f32[4,6]  input
_softmax                f32[4,6]  _softmax g -1 False
_to_copy                f16[4,6]  _to_copy _softmax dtype=f16
relu                    f16[4,6]  relu _to_copy
_to_copy_default        f32[4,6]  _to_copy _to_copy dtype=f32
_softmax_backward_data  f32[4,6]  _softmax_backward_data g _to_copy_default -1 f32
return                            relu
return                            _softmax_backward_data""",
    )
    # One rounding of y to 11 bits; |y| <= 1 and the gradient is linear in g.
    (_, exact), (_, found) = run(before, X, X), run(module, X, X)
    assert (exact - found).abs().max() <= 4 * 2.0**-11 * X.abs().sum(-1).max()
    assert save_narrow(module) == 0


def test_a_tensor_that_forward_reads_in_fp32_as_well_is_kept() -> None:
    def both(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.softmax(x, -1)
        total = y.sum() + y.half().sum()
        return total, torch.ops.aten._softmax_backward_data.default(g, y, -1, torch.float32)

    module = split(graph_of(both, x=X, g=X), "_softmax_backward_data")
    text = graph_text(module.graph)
    assert save_narrow(module) == 0
    assert graph_text(module.graph) == text


def test_an_input_is_kept() -> None:
    def weight(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.half().relu(), torch.ops.aten._softmax_backward_data.default(g, x, -1, x.dtype)

    module = split(graph_of(weight, x=X, g=X), "_softmax_backward_data")
    assert save_narrow(module) == 0


def test_a_reduced_number_is_kept() -> None:
    def reduced(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = torch.logsumexp(x, 0, keepdim=True)
        weights = torch.ops.aten.neg.default(x - total)  # stands for backward's exponential
        return total.half().relu(), weights * g

    for rows, freed in ((8, 1), (64, 0)):
        x = torch.randn(rows, 6)
        module = split(graph_of(reduced, x=x, g=x), "sub")
        for node in module.graph.nodes:
            if op_name(node) in ("_to_copy", "relu"):
                del node.meta["backward"]
        assert save_narrow(module) == freed
