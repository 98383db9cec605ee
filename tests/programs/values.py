"""Programs whose numbers fit 16 bits by range and not by digits, each with a batch.

Each is a model that returns a tensor. `BETWEEN` names those in which a Tensor-Core op makes the
sensitive number, so that eager autocast is wrong by much.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Program = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]

PROGRAMS: dict[str, Program] = {}
BETWEEN = frozenset(
    (
        "fourier_features_by_a_matmul",
        "waves_of_a_layer",
        "squared_distances_by_a_matmul",
        "a_kernel_matrix",
        "angles_by_a_matmul",
    )
)


def program(make: Program) -> Program:
    PROGRAMS[make.__name__] = make
    return make


class Head(nn.Module):
    """Features of the batch, read by a small network."""

    def __init__(self, features: Callable[..., Tensor], count: int) -> None:
        super().__init__()
        self.features = features
        self.net = nn.Sequential(nn.Linear(count, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, *batch: Tensor) -> Tensor:
        result: Tensor = self.net(self.features(*batch))
        return result


def frequencies(count: int) -> Tensor:
    return torch.exp(-torch.arange(count) * math.log(10_000) / count)


def sines(position: Tensor) -> Tensor:
    angle = position[..., None].float() * frequencies(8)
    return torch.cat([angle.sin(), angle.cos()], -1)


@program
def sine_positions() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Head(sines, 16), (torch.arange(3000, 3064),)


@program
def diffusion_times() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Head(sines, 16), (torch.randint(0, 1000, (32,)),)


@program
def seconds_since_1970() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def times(stamp: Tensor) -> Tensor:
        day = (stamp.remainder(86_400) / 86_400) * 2 * math.pi
        week = (stamp.remainder(604_800) / 604_800) * 2 * math.pi
        return torch.stack([day.sin(), day.cos(), week.sin(), week.cos()], -1)

    return Head(times, 4), (1_700_000_000.0 + torch.arange(32) * 7200.0,)


@program
def phases_of_audio() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def phases(pitch: Tensor) -> Tensor:
        phase = torch.cumsum(2 * math.pi * pitch / 16_000, -1)
        return torch.sin(phase[:, -64:])

    return Head(phases, 64), (200 + 100 * torch.rand(4, 4000),)


@program
def distances_far_from_the_origin() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def distances(points: Tensor) -> Tensor:
        return ((points[:, None] - points[None]) ** 2).sum(-1).add(1e-6).sqrt()

    return Head(distances, 16), (torch.randn(16, 3) * 0.01 + 100,)


@program
def remainder_of_large_counts() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def remainder(count: Tensor) -> Tensor:
        return (count[:, None] / torch.tensor([4097.0] * 16)).frac()

    return Head(remainder, 16), (torch.arange(60_000, 60_016).float(),)


@program
def overlap_of_boxes() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def overlap(a: Tensor, b: Tensor) -> Tensor:
        low = torch.maximum(a[:, None, :2], b[None, :, :2])
        high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
        inner = (high - low).clamp(min=0).prod(-1)
        area_a = (a[:, 2:] - a[:, :2]).prod(-1)
        area_b = (b[:, 2:] - b[:, :2]).prod(-1)
        return inner / (area_a[:, None] + area_b - inner)

    corner = 3900 + 100 * torch.rand(16, 2)
    boxes = torch.cat([corner, corner + 5 + 10 * torch.rand(16, 2)], -1)
    return Head(overlap, 16), (boxes, boxes.roll(1, 0) + torch.randn(16, 4))


@program
def coordinates_of_an_equation() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def waves(x: Tensor) -> Tensor:
        return torch.cat([torch.sin(40 * x), torch.cos(40 * x), torch.exp(-x * x)], -1)

    return Head(waves, 6), (torch.rand(32, 2) * 20,)


@program
def normalised_raw_features() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def normalised(x: Tensor) -> Tensor:
        return (x.T.contiguous().T - x.mean(0)) / x.std(0)

    return Head(normalised, 8), (20_000 + torch.randn(64, 8),)


@program
def buckets_of_numbers() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def buckets(x: Tensor) -> Tensor:
        share = (x - 1000.0) / 50.0
        return torch.nn.functional.one_hot(torch.floor(share * 8).long().clamp(0, 7), 8).float()

    return Head(buckets, 8), (1000 + torch.rand(64) * 50,)


@program
def fourier_features_by_a_matmul() -> tuple[nn.Module, tuple[Tensor, ...]]:
    matrix = torch.randn(3, 8) * 30

    def features(x: Tensor) -> Tensor:
        angle = 2 * math.pi * x @ matrix
        return torch.cat([angle.sin(), angle.cos()], -1)

    return Head(features, 16), (torch.rand(32, 3),)


class Waves(nn.Module):
    """A layer whose activation is a sine of high frequency (Sitzmann et al., arXiv 2006.09661)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.sin(30 * self.first(x)))
        return result


@program
def waves_of_a_layer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Waves(), (torch.rand(32, 2) * 2 - 1,)


@program
def squared_distances_by_a_matmul() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def distances(x: Tensor) -> Tensor:
        square = (x * x).sum(-1)
        return square[:, None] - 2 * x @ x.T + square

    return Head(distances, 16), (torch.randn(16, 3) + 10,)


@program
def a_kernel_matrix() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def kernel(x: Tensor) -> Tensor:
        gram = x @ x.T
        solved: Tensor = torch.linalg.solve(gram / 8 + 0.01 * torch.eye(16), x)
        return solved

    return Head(kernel, 8), (torch.randn(16, 8),)


class Rotated(nn.Module):
    """Attention with rotary positions (Su et al., arXiv 2104.09864)."""

    def __init__(self, by_matmul: bool) -> None:
        super().__init__()
        self.project, self.last = nn.Linear(16, 48), nn.Linear(16, 4)
        self.by_matmul = by_matmul
        self.register_buffer("frequency", 1 / 10_000 ** (torch.arange(0, 16, 2) / 16))

    def tables(self, position: Tensor) -> tuple[Tensor, Tensor]:
        frequency = self.get_buffer("frequency")
        if self.by_matmul:
            angle = (frequency[:, None] @ position[None].float()).T
        else:
            angle = torch.einsum("i,j->ij", position.float(), frequency)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        cos, sin = self.tables(position)
        q, k = (z * cos + torch.cat([-z[..., 8:], z[..., :8]], -1) * sin for z in (q, k))
        mixed = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        result: Tensor = self.last(mixed[:, 0])
        return result


@program
def angles_by_a_matmul() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Rotated(by_matmul=True), (torch.randn(2, 32, 16), torch.arange(30_000, 30_032))


def rotary(start: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Rotated(by_matmul=False), (torch.randn(2, 32, 16), torch.arange(start, start + 32))
