"""Programs that people write: each bitwise plain PyTorch in FP32, and close to it in FP16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, CannotCapture, LossScale, Policy

F = nn.functional
X, Y = (
    torch.randn(6, 8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 3, 0, 1]),
)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Loss = Callable[..., torch.Tensor]


class Written(nn.Module):
    """A net whose forward is a function of its parts."""

    def __init__(self, forward: Callable[..., torch.Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = forward

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.body(self, *inputs)


class Average(nn.Module):
    """Updates buffers of its own in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.mean: torch.Tensor
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.one(x)
        self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        self.count += 1
        result: torch.Tensor = hidden - self.mean
        return result


def in_place_on_views(net: Any, x: torch.Tensor) -> torch.Tensor:
    hidden = net.a(x)
    hidden[:, :4].mul_(2)
    hidden[:, 0] = 1.0
    hidden += 1
    result: torch.Tensor = net.b(hidden[:, 2:6])
    return result


def masked(net: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q = net.a(x).view(1, 2, 6, 4)
    result: torch.Tensor = net.b(F.scaled_dot_product_attention(q, q, q, mask).reshape(6, 8))
    return result


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def reconstruct(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(model(x), x)


def eval_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].eval()
    return model


def two(width: int = 8) -> dict[str, nn.Module]:
    return {"a": nn.Linear(8, 8), "b": nn.Linear(width, 4)}


PROGRAMS: dict[str, tuple[Callable[[], nn.Module], Loss, tuple[torch.Tensor, ...]]] = {
    "softmax with a dtype": (
        lambda: Written(lambda m, x: m.b(torch.softmax(m.a(x), -1, dtype=torch.float32)), **two()),
        cross_entropy,
        (X, Y),
    ),
    "the user's own cast": (
        lambda: Written(lambda m, x: m.b(m.a(x).to(torch.bfloat16).float()), **two()),
        cross_entropy,
        (X, Y),
    ),
    "batch norm in eval mode": (eval_norm, cross_entropy, (X, Y)),
    "batch norm without statistics": (
        lambda: nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4)
        ),
        cross_entropy,
        (X, Y),
    ),
    "one batch norm called twice": (
        lambda: Written(lambda m, x: m.b(m.n(m.a(m.n(m.a(x))))), n=nn.BatchNorm1d(8), **two()),
        cross_entropy,
        (X, Y),
    ),
    "buffers updated in place": (Average, cross_entropy, (X, Y)),
    "in place on views": (lambda: Written(in_place_on_views, **two(4)), cross_entropy, (X, Y)),
    "a float mask": (
        lambda: Written(masked, **two()),
        lambda m, x, mask, y: F.cross_entropy(m(x, mask), y),
        (X, torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")), Y),
    ),
    "a boolean mask": (
        lambda: Written(masked, **two()),
        lambda m, x, mask, y: F.cross_entropy(m(x, mask), y),
        (X, torch.ones(6, 6).tril().bool(), Y),
    ),
    "an FP64 target": (
        lambda: nn.Linear(8, 8),
        lambda m, x, t: F.mse_loss(m(x).double(), t).float(),
        (X, X.double()),
    ),
    "a bidirectional GRU with dropout": (
        lambda: Written(
            lambda m, x: m.b(m.g(x.view(2, 3, 8))[0]).flatten(0, 1),
            g=nn.GRU(8, 4, 2, batch_first=True, bidirectional=True, dropout=0.1),
            b=nn.Linear(8, 4),
        ),
        cross_entropy,
        (X, Y),
    ),
    "a transformer layer": (
        lambda: Written(
            lambda m, x: m.b(m.t(x.view(2, 3, 8))).flatten(0, 1),
            t=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
            b=nn.Linear(8, 4),
        ),
        cross_entropy,
        (X, Y),
    ),
    "group norm and transposed convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        ),
        reconstruct,
        (IMAGE,),
    ),
    "pooling and upsampling": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.InstanceNorm2d(8, affine=True),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(8, 3, 1),
        ),
        reconstruct,
        (IMAGE,),
    ),
    "a penalty on the weights": (
        lambda: nn.Linear(8, 4),
        lambda m, x, y: cross_entropy(m, x, y) + 1e-4 * sum(p.pow(2).sum() for p in m.parameters()),
        (X, Y),
    ),
    "a bag of embeddings": (
        lambda: Written(lambda m, i: m.b(m.e(i)), e=nn.EmbeddingBag(10, 8), b=nn.Linear(8, 4)),
        cross_entropy,
        (torch.arange(18).remainder(10).view(6, 3), Y),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("policy", [FULL_PRECISION, Policy()], ids=["fp32", "fp16"])
def test_a_program_trains_as_in_plain_pytorch(name: str, policy: Policy) -> None:
    make, loss, batch = PROGRAMS[name]
    torch.manual_seed(0)
    mine = make()
    peer = copy.deepcopy(mine)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (mine, peer)]
    # A static scale that overflows in none of them, so that no step is skipped.
    scale = LossScale.none() if policy is FULL_PRECISION else LossScale.static(256.0)
    step = mpcompile.compile(mine, loss, optimizers[0], batch, policy=policy, loss_scale=scale)
    torch.manual_seed(1)
    found = [float(step(*batch)) for _ in range(3)]
    torch.manual_seed(1)
    expected = []
    for _ in range(3):
        value = loss(peer, *batch)
        optimizers[1].zero_grad()
        torch.autograd.backward(value)
        optimizers[1].step()
        expected.append(float(value.detach()))
    assert step.taken == 3
    if policy is FULL_PRECISION:
        assert found == expected
        for (key, left), right in zip(
            mine.state_dict().items(), peer.state_dict().values(), strict=True
        ):
            assert torch.equal(left, right), key
    else:
        # Roundings of 2**-11, a few in a row, on losses near 1; three steps of AdamW apart.
        assert found == pytest.approx(expected, rel=2e-2, abs=2e-2)
        for left, right in zip(mine.buffers(), peer.buffers(), strict=True):
            assert left.dtype is right.dtype
            torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-2)


def test_an_instance_norm_that_updates_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, track_running_stats=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match="instance norm 1 updates running statistics"):
        mpcompile.compile(model, reconstruct, optimizer, (IMAGE,))
