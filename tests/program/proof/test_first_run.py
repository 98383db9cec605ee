"""A program whose first run puts other tensors in the place of its buffers."""

from __future__ import annotations

import pytest
import torch
from oracles.eager_training import SideBySide
from torch import Tensor, nn

import mpcompile
from mpcompile import CannotCapture


class Table(nn.Module):
    """Learns the length of a table from its first input, as timm's ConViT does.

    Args:
        grows: whether the table is replaced by a longer one in each call.
    """

    table: Tensor
    factor: Tensor | None

    def __init__(self, *, grows: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.grows = nn.Linear(8, 8), grows
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)
        self.register_buffer("factor", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.grows or self.table.shape[1] != length:
            length += self.table.shape[1] if self.grows else 0
            self.table = torch.arange(float(length))[None] / length
        if self.factor is None:
            self.factor = torch.full((8,), 2.0)
        result: Tensor = self.layer(x) * self.table[:, : x.shape[1], None] * self.factor
        return result


def loss(model: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = model(x).square().mean()
    return value


def data(*lengths: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, length, 8, generator=generator),) for length in lengths]


def test_it_is_one_graph_for_each_length_and_trains_as_in_eager_pytorch() -> None:
    batches = data(6, 6, 5, 6, 5)
    pair = SideBySide(Table(), loss, batches[0], whole=True)
    for mine, theirs in pair.train(batches):
        assert mine == theirs
    assert pair.differing() == []
    assert torch.equal(pair.model.get_buffer("table"), pair.eager.get_buffer("table"))


def test_one_that_no_run_settles_runs_in_pieces() -> None:
    batches = data(6, 6, 5, 6)
    pair = SideBySide(Table(grows=True), loss, batches[0])
    assert pair.step.captured.in_pieces is not None
    for mine, theirs in pair.train(batches):
        assert mine == theirs
    assert torch.equal(pair.model.get_buffer("table"), pair.eager.get_buffer("table"))


def test_a_refusal_leaves_the_buffers() -> None:
    model = Table(grows=True)
    before = model.table
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match="replaces the buffer table by a tensor of another"):
        mpcompile.compile(model, loss, optimizer, data(6)[0], whole=True)
    assert model.table is before
    assert model.factor is None
