"""The error oracle: against FP64, at most three times the error of eager autocast.

The factor is the one PyTorch's own benchmark suites use for compiled programs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from oracles.error import FACTOR, Errors, errors
from torch import nn

from mpcompile.program.workload import load

# A loss is one number: by luck the peer can hit it. Below this it counts as exact.
EXACT_LOSS = 2.0**-14


def check(ours: Errors, peer: Errors, size: float) -> None:
    assert ours.loss <= FACTOR * peer.loss + EXACT_LOSS * size, (ours, peer)
    assert ours.gradient <= FACTOR * peer.gradient, (ours, peer)


@pytest.mark.parametrize("name", ["gpt", "lstm", "resnet"])
def test_models_stay_within_three_times_the_error_of_autocast(name: str) -> None:
    workload = load(f"models/{name}.py")
    assert workload.data is not None
    assert workload.loss is not None
    batches = [batch for batch, _ in zip(workload.data, range(2), strict=False)]
    ours, peer = errors(workload.model, workload.loss, batches)
    check(ours, peer, size=1.0)


WIDTH = 16


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.inner(x)
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.softmax(self.gate(x), dim=-1)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return nn.functional.relu(result, inplace=True)  # in place on a view


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gru(x)[0]
        return result


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "attention": Attention,
    "softmax": Softmax,
    "convolution": Convolution,
    "rms": Scale,
    "gru": Recurrent,
}
RESIDUAL = frozenset({"linear", "mlp", "attention", "softmax", "convolution", "gru"})


class Net(nn.Module):
    def __init__(self, names: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(
            *[
                Residual(BLOCKS[name]()) if skip and name in RESIDUAL else BLOCKS[name]()
                for name, skip in names
            ]
        )
        self.leave = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leave(self.blocks(self.enter(x)))
        return result


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def squares(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    found = model(x)
    return nn.functional.mse_loss(found, torch.eye(5, dtype=found.dtype)[y])


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a net takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    names=st.lists(
        st.tuples(st.sampled_from(sorted(BLOCKS)), st.booleans()), min_size=1, max_size=5
    ),
    loss=st.sampled_from([cross_entropy, squares]),
    seed=st.integers(0, 2**20),
)
def test_random_nets_stay_within_three_times_the_error_of_autocast(
    names: list[tuple[str, bool]],
    loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    net = Net(names)
    batches = [(torch.randn(4, 6, WIDTH), torch.randint(0, 5, (4, 6))) for _ in range(2)]
    ours, peer = errors(net, loss, batches)
    assume(isfinite(peer.gradient))  # autocast itself overflows: a step that either would skip
    check(ours, peer, size=1.0)
