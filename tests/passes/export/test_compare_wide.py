"""A comparison of a 16-bit tensor with its own extreme has the same result in FP32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.graphs import graph_of, run
from torch import Tensor, fx

from mpcompile.passes.export.compare_wide import compare_wide
from mpcompile.program.graph_text import graph_text
from mpcompile.torch_private.ops import op_name

CHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "as autograd does": lambda x: x.amax([0, 1]).view(1, 1) == x,
    "behind views": lambda x: x.t().amin(0).unsqueeze(0) < x.t(),
    "of all numbers": lambda x: x != x.max(),
    "by index": lambda x: torch.max(x, 1).values.unsqueeze(1) <= x,
    "of both extremes": lambda x: torch.aminmax(x, dim=0)[1] == x,
    "after a round trip": lambda x: x.float().amax(1).half().view(-1, 1) == x.float(),
    "of two extremes": lambda x: x.amax(1) >= x.amin(1),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "of another tensor": lambda x: (x + 1).amax(1, True) == x,
    "of a rounded tensor": lambda x: x.exp().amax(1, True) == x.exp() * 1,
    "of no extreme": lambda x: x.view(2, -1)[0] == x.view(2, -1)[1],
    "of a number": lambda x: x.amax(1) == 3.0,
    "of FP32": lambda x: x.float().exp().amax() == x.float().exp(),
}


def numbers() -> Tensor:
    return torch.randint(-3, 4, (4, 6), generator=torch.Generator().manual_seed(0)).half() / 7


def compared(module: fx.GraphModule) -> set[torch.dtype]:
    """Return the dtypes that comparisons read."""
    nodes = [n for n in module.graph.nodes if op_name(n) in ("eq", "ne", "lt", "le", "ge")]
    return {item.meta["val"].dtype for node in nodes for item in node.all_input_nodes}


@pytest.mark.parametrize("name", CHANGED)
def test_the_result_is_the_same_and_is_compared_in_fp32(name: str) -> None:
    x = numbers()
    module = graph_of(CHANGED[name], x=x)
    [before] = run(module, x)
    assert compare_wide(module) == 1
    assert compared(module) == {torch.float32}
    [after] = run(module, x)
    assert torch.equal(before, after)
    assert after.any()
    module.graph.lint()


@pytest.mark.parametrize("name", CHANGED)
def test_both_sides_come_from_one_cast(name: str) -> None:
    module = graph_of(CHANGED[name], x=numbers())
    compare_wide(module)
    [x] = module.graph.find_nodes(op="placeholder")
    [cast] = x.users
    assert cast.meta["val"].dtype is torch.float32
    assert compare_wide(module) == 0


@pytest.mark.parametrize("name", KEPT)
def test_other_comparisons_stay(name: str) -> None:
    module = graph_of(KEPT[name], x=numbers())
    text = graph_text(module.graph)
    assert compare_wide(module) == 0
    assert graph_text(module.graph) == text
