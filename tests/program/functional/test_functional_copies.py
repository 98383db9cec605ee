"""A functional copy is a conversion, which has a derivative."""

from __future__ import annotations

import torch
from programs.graphs import graph_of, run

from mpcompile.program.functional.copies import write_out_copies
from mpcompile.torch_private.ops import op_name

LIKE, ROW = torch.zeros(3, 4), torch.arange(4.0)


def test_a_row_becomes_the_whole_tensor_with_its_gradient() -> None:
    module = graph_of(lambda like, row: torch.ops.aten.copy(like, row) * 2, like=LIKE, row=ROW)
    assert write_out_copies(module.graph) == 1
    module.recompile()
    row = ROW.clone().requires_grad_()
    (made,) = run(module, LIKE, row)
    assert torch.equal(made, 2 * ROW.expand(3, 4))
    made.sum().backward()
    assert row.grad is not None
    assert torch.equal(row.grad, torch.full((4,), 6.0))


def test_another_dtype_is_converted_and_the_same_tensor_is_passed_on() -> None:
    module = graph_of(
        lambda like, row: (torch.ops.aten.copy(like, row.double()), torch.ops.aten.copy(row, row)),
        like=LIKE,
        row=ROW,
    )
    assert write_out_copies(module.graph) == 2
    assert "copy" not in {op_name(node) for node in module.graph.nodes}
    module.recompile()
    whole, same = run(module, LIKE, ROW)
    assert whole.dtype is torch.float32
    assert torch.equal(same, ROW)
