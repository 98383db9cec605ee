"""Steps with an open batch size: one graph gives for every size what a graph of that size gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import mpcompile
from mpcompile import FULL_PRECISION


class Words(nn.Module):
    """Tokens: an embedding, attention, an MLP, tied to the head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.enter = nn.Linear(16, 48)
        self.leave = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, 2, width // 2).transpose(1, 2)
            for part in self.enter(self.norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.leave(mixed.transpose(1, 2).reshape(batch, time, width)))
        return F.linear(x, self.words.weight)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


def dropping() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
    )


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def classes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def words(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(tokens[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def squares(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss that reckons with the batch size itself, and never says that both have the same."""
    penalty: torch.Tensor = y.float().square().sum() / (2 * y.shape[0])
    first: torch.Tensor = model(x).square().sum() / x.shape[0]
    return first + penalty * next(model.parameters()).mean()


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def tokens(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 11, (count, 7), generator=torch.Generator().manual_seed(seed)),)


NETS: dict[str, tuple[Any, ...]] = {
    "perceptron": (perceptron, classes, rows, {}),
    "fp32": (perceptron, squares, rows, {"policy": FULL_PRECISION}),
    "dropout": (dropping, classes, rows, {"max_grad_norm": 0.1}),
    "accumulate": (dropping, classes, rows, {"accumulate": 2}),
    "convolution": (convolution, classes, pictures, {}),
    "words": (Words, words, tokens, {"max_grad_value": 0.1}),
    "words with dropout": (lambda: Words(0.2), words, tokens, {}),
    "squares": (perceptron, squares, rows, {}),
}


def twin(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    peer = copy.deepcopy(model)
    other = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return peer, other


@pytest.mark.parametrize("name", NETS)
def test_each_size_gives_what_a_graph_of_that_size_gives(name: str) -> None:
    make, loss, batch, options = NETS[name]
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = mpcompile.compile(model, loss, optimizer, batch(6), dynamic=True, **options)
    for size in (6, 2, 9):
        peer, other = twin(model, optimizer)
        alone = mpcompile.compile(peer, loss, other, batch(size), **options)
        alone.load_scaler_state(step.scaler_state())
        for seed in range(options.get("accumulate", 1)):
            given = batch(size, seed)
            torch.manual_seed(seed)
            expected = alone(*given)
            torch.manual_seed(seed)
            assert torch.equal(step(*given), expected)
        for (key, mine), theirs in zip(
            model.state_dict().items(), peer.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, theirs), key
    assert len(step._graphs) == 1
    assert step.taken > 0


@pytest.mark.parametrize("name", NETS)
def test_the_plan_is_that_of_the_example(name: str) -> None:
    make, loss, batch, options = NETS[name]
    torch.manual_seed(0)
    model = make()
    plans = [
        mpcompile.compile(
            model, loss, torch.optim.AdamW(model.parameters()), batch(6), dynamic=dynamic, **options
        ).plan.to_json()
        for dynamic in (True, False)
    ]
    assert plans[0] == plans[1]
