"""Which graphs of Dynamo are planned: those in which a call may multiply matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from mpcompile.pieces.tensor_cores import _PRODUCTS, may_use_tensor_cores
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import Wish

PRODUCTS: list[Callable[..., Any]] = [
    lambda x, y: functional.linear(x, y),
    lambda x, y: x @ y,
    lambda x, y: x.matmul(y),
    lambda x, y: torch.einsum("ij,jk->ik", x, y),
    lambda x, y: functional.scaled_dot_product_attention(x, y, y),
    lambda x, y: torch.nn.functional.conv2d(x, y).relu(),
    lambda x, y: torch.ops.aten.addmm(x, x, y),
    lambda x, y: torch.tensordot(x, y, 1),
]


def boxes(x: Tensor, y: Tensor) -> Tensor:
    size = (x[:, 2:] - x[:, :2]).clamp(min=0).prod(1)
    kept = torch.where(size > y.mean())[0]
    return torch.cat([x[kept], functional.relu(y)]).softmax(0).log()


@pytest.mark.parametrize("function", PRODUCTS)
def test_a_product_may_run_on_a_tensor_core(function: Callable[..., Any]) -> None:
    assert may_use_tensor_cores(fx.symbolic_trace(function))


def test_arithmetic_with_boxes_may_not() -> None:
    assert not may_use_tensor_cores(fx.symbolic_trace(boxes))


@fx.wrap
def unknown(x: Tensor) -> Tensor:
    return x


def test_what_is_not_known_may() -> None:
    assert may_use_tensor_cores(fx.symbolic_trace(lambda x: unknown(x)))


def test_each_op_of_the_table_that_wants_16_bits_is_known_by_its_name() -> None:
    wanted = [name for name, rule in TORCH_RULES.items() if rule.wish is Wish.HALF]
    assert wanted
    assert [name for name in wanted if not _PRODUCTS.search(name)] == []
