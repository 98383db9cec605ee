"""Batches, sizes that depend on values, checks of values, writes: what many scripts have."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, distributions, nn

from programs.others.registry import Net, classes, mlp, program


@program
def unused_parameters() -> Any:
    net = Net(lambda self, x: self.used(x), used=mlp(), pooler=nn.Linear(3, 3))
    net.mask_token = nn.Parameter(torch.ones(4))
    return net, lambda m, x, y: functional.cross_entropy(m(x), y), (torch.randn(8, 16), classes(8))


@program
def a_parameter_behind_detach() -> Any:
    net = Net(lambda self, x: self.used(x) + self.other(x).detach(), used=mlp(), other=mlp())
    return net, lambda m, x, y: functional.cross_entropy(m(x), y), (torch.randn(8, 16), classes(8))


@program
def a_parameter_behind_a_comparison() -> Any:
    net = Net(lambda self, x: self.used(x) * (self.gate(x) > 0), used=mlp(), gate=mlp())
    return net, lambda m, x, y: functional.cross_entropy(m(x), y), (torch.randn(8, 16), classes(8))


@program
def a_mask_selects_losses() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        each = functional.cross_entropy(model(x), y, reduction="none")
        return each[y > 1].mean()

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def rows_by_nonzero() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.nonzero(y > 1).squeeze(1)
        return functional.cross_entropy(model(x[rows]), y[rows])

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def sums_by_unique() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found, place = torch.unique(y, return_inverse=True)
        rows = model(x)
        sums = rows.new_zeros(found.shape[0], 5).index_add(0, place, rows)
        loss: Tensor = sums.square().mean()
        return loss

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def rows_repeated_by_a_tensor() -> Any:
    counts = torch.tensor([5, 3, 1, 7])
    return (
        mlp(),
        lambda m, x: m(x).repeat_interleave(counts, 0).square().mean(),
        (torch.randn(4, 16),),
    )


@program
def experts_by_index() -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        sums = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, rank = torch.where(chosen == number)
            sums[row] += weight[row, rank, None] * expert(x[row])
        result: Tensor = self.out(sums)
        return result

    experts = nn.ModuleList([mlp(16, 16) for _ in range(4)])
    net = Net(forward, gate=nn.Linear(16, 4), experts=experts, out=nn.Linear(16, 5))
    return net, lambda m, x, y: functional.cross_entropy(m(x), y), (torch.randn(8, 16), classes(8))


@program
def state_written_step_by_step() -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        key = self.key(x)
        out, state = torch.zeros_like(key), torch.zeros(x.shape[0], 8)
        for time in range(x.shape[1]):
            state = 0.9 * state + key[:, time]
            out[:, time] = state
        result: Tensor = self.out(out)
        return result

    net = Net(forward, key=nn.Linear(8, 8), out=nn.Linear(8, 3))
    return net, lambda m, x: m(x).square().mean(), (torch.randn(2, 5, 8),)


@program
def positions_from_a_mask() -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[0], *x.shape[2:]).bool()
        rows, columns = ((~mask).cumsum(axis, dtype=x.dtype) for axis in (1, 2))
        place = self.position(torch.stack([rows, columns], 1))
        result: Tensor = self.out((self.conv(x) + place).mean((2, 3)))
        return result

    parts = {"conv": nn.Conv2d(3, 4, 3, padding=1), "position": nn.Conv2d(2, 4, 1)}
    net = Net(forward, out=nn.Linear(4, 2), **parts)
    return net, lambda m, x: m(x).square().mean(), (torch.randn(2, 3, 8, 8),)


@program
def angular_margin() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        cosine = functional.normalize(model(x), dim=-1).clamp(-0.999, 0.999)
        margin = 0.5 * functional.one_hot(y, 5)
        return functional.cross_entropy(16 * torch.cos(torch.acos(cosine) + margin), y)

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def focal_loss() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        logits[:, 0] += 0.5
        wanted = functional.one_hot(y, 5).float()
        probability = torch.sigmoid(logits)
        right = probability * wanted + (1 - probability) * (1 - wanted)
        each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (each * (1 - right) ** 2).mean()

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@dataclass
class Sample:
    x: Tensor
    y: Tensor
    name: str


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@program
def batch_of_a_dict() -> Any:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["y"], weight=batch["weight"])

    return mlp(), loss, ({"x": torch.randn(8, 16), "y": classes(8), "weight": None},)


@program
def batch_of_named_arguments() -> Any:
    def loss(model: nn.Module, *, x: Tensor, y: Tensor, smoothing: float) -> Tensor:
        return functional.cross_entropy(model(x), y, label_smoothing=smoothing)

    return mlp(), loss, {"x": torch.randn(8, 16), "y": classes(8), "smoothing": 0.1}


@program
def batch_of_lists_and_a_dataclass() -> Any:
    def loss(model: nn.Module, given: list[Any], other: Pair) -> Tensor:
        (sample, (scale, mode)) = given
        both = model(torch.cat([sample.x, other.x]))
        wanted = torch.cat([sample.y, other.y])
        each: Tensor = scale * functional.cross_entropy(both, wanted, reduction=mode)
        return each

    one = Sample(torch.randn(4, 16), classes(4), "first")
    return mlp(), loss, ([one, (2, "mean")], Pair(torch.randn(4, 16), classes(4)))


@program
def policy_gradient() -> Any:
    def loss(
        model: Any, state: Tensor, action: Tensor, old: Tensor, gain: Tensor, wanted: Tensor
    ) -> Tensor:
        hidden = torch.relu(model.body(state))
        chosen = distributions.Categorical(logits=model.policy(hidden))
        ratio = (chosen.log_prob(action) - old).exp()
        clipped = torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        value = functional.mse_loss(model.value(hidden).squeeze(1), wanted)
        result: Tensor = -clipped.mean() + 0.5 * value - 0.01 * chosen.entropy().mean()
        return result

    parts = {"body": mlp(8, 32), "policy": nn.Linear(32, 4), "value": nn.Linear(32, 1)}
    batch = torch.randn(16, 8), classes(16, 4), -torch.rand(16) - 1, *torch.randn(2, 16).unbind()
    return Net(lambda self, x: self.body(x), **parts), loss, batch


@program
def gaussian_likelihood() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        return functional.gaussian_nll_loss(out[:, :2], y, functional.softplus(out[:, 2:4]))

    return mlp(), loss, (torch.randn(8, 16), torch.randn(8, 2))


@program
def normal_with_a_covariance() -> Any:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        mean = model(x)[:, :3]
        normal = distributions.MultivariateNormal(mean, torch.eye(3, dtype=mean.dtype))
        each: Tensor = normal.log_prob(x[:, :3])
        return -each.mean()

    return mlp(), loss, (torch.randn(8, 16),)


@program
def checks_of_values() -> Any:
    def loss(model: nn.Module, x: Tensor, strict: bool) -> Tensor:
        out = model(x)
        assert torch.isfinite(out).all(), "not finite"
        if out.isnan().any() or out.isinf().any():
            raise ValueError("not a number")
        if strict and not (out.abs() < 1e6).all():
            raise ValueError("too large")
        if (out.abs() > 1e3).any():
            warnings.warn("large", stacklevel=2)
        torch._assert((out.abs() < 1e5).all(), "large")
        torch._check((x.abs() < 100).all().item())
        result: Tensor = out.square().mean()
        return result

    return mlp(), loss, (torch.randn(8, 16), True)


@program
def sizes_by_tolist() -> Any:
    def loss(model: nn.Module, x: Tensor, sizes: Tensor) -> Tensor:
        total = x.new_zeros(())
        for row, size in zip(model(x), sizes.tolist(), strict=True):
            total = total + row[: size + 1].square().sum()
        return total / x.shape[0]

    return mlp(), loss, (torch.randn(4, 16), torch.tensor([0, 3, 1, 2]))


@program
def parts_by_split() -> Any:
    def loss(model: nn.Module, x: Tensor, sizes: Tensor) -> Tensor:
        parts = torch.split(model(x), sizes.tolist())
        return torch.stack([part.mean(0) for part in parts]).square().mean()

    return mlp(), loss, (torch.randn(8, 16), torch.tensor([2, 5, 1]))
