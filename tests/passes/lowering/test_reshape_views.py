"""A view of what a kernel returns: right for any strides."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import graph_of, run

from mpcompile.passes.lowering.reshape_views import reshape_views
from mpcompile.torch_private.ops import op_name

A = torch.randn(4, 6)


def test_strides_that_the_capture_did_not_know() -> None:
    module = graph_of(lambda a: (a + 1).view(24) * 2, a=A)
    other = A.t().contiguous().t()  # the sum has the strides of its operand
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        run(module, other)
    assert reshape_views(module) == 1
    (found,) = run(module, other)
    assert torch.equal(found, (A + 1).flatten() * 2)
    assert reshape_views(module) == 0


def test_a_view_that_is_possible_stays_without_a_copy() -> None:
    module = graph_of(lambda a: (a + 1).view(24), a=A)
    reshape_views(module)
    [node] = [each for each in module.graph.nodes if op_name(each) == "reshape"]
    made = (A + 1).contiguous()
    assert node.target(made, [24]).data_ptr() == made.data_ptr()
