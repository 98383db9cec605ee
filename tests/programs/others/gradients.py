"""Programs that compute gradients inside their loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from programs.others.registry import classes, mlp, program


def critic(inputs: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 1))


@program
def gradient_penalty() -> Any:
    def loss(model: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        penalty = ((slope.norm(2, 1) - 1) ** 2).mean()
        result: Tensor = model(fake).mean() - model(real).mean() + 10 * penalty
        return result

    return critic(), loss, (*torch.randn(2, 8, 16).unbind(), torch.rand(8, 1))


@program
def gradient_penalty_behind_a_batch_norm() -> Any:
    _, loss, batch = gradient_penalty()
    norm = nn.BatchNorm1d(32)
    return nn.Sequential(nn.Linear(16, 32), norm, nn.Tanh(), nn.Linear(32, 1)), loss, batch


@program
def penalty_of_a_convolution() -> Any:
    def loss(model: nn.Module, image: Tensor) -> Tensor:
        image = image.detach().requires_grad_()
        score = model(image)
        (slope,) = torch.autograd.grad(score.sum(), image, create_graph=True)
        norm = slope.square().flatten(1).sum(1).mean()
        result: Tensor = norm + functional.softplus(score).mean()
        return result

    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.GroupNorm(2, 8))
    more = (nn.Conv2d(8, 8, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 9, 1))
    return nn.Sequential(*layers, *more), loss, (torch.randn(4, 3, 8, 8),)


@program
def a_differential_equation() -> Any:
    def loss(model: nn.Module, place: Tensor) -> Tensor:
        place = place.clone().requires_grad_(True)
        value = model(place)
        ones = torch.ones_like(value)
        (slope,) = torch.autograd.grad(value, place, ones, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0], place, ones[:, 0], create_graph=True)
        left = ((slope[:, 1] - bend[:, 0]) ** 2).mean()
        result: Tensor = left + (value**2).mean()
        return result

    return critic(2), loss, (torch.rand(16, 2),)


@program
def forces_of_an_energy() -> Any:
    def loss(model: nn.Module, place: Tensor, wanted: Tensor) -> Tensor:
        place = place.clone().requires_grad_(True)
        energy = model(place.flatten(1)).sum()
        (slope,) = torch.autograd.grad(energy, place, create_graph=True)
        result: Tensor = functional.mse_loss(-slope, wanted) + 1e-3 * energy**2
        return result

    return critic(12), loss, (torch.randn(5, 4, 3), torch.randn(5, 4, 3))


def adapted(model: nn.Module, x: Tensor, y: Tensor, second_order: bool) -> dict[str, Tensor]:
    weights = dict(model.named_parameters())
    inner = functional.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=second_order)
    return {n: w - 0.1 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}


@program
def meta_learning() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(model, adapted(model, x[:4], y[:4], True), (x[4:],))
        return functional.cross_entropy(out, y[4:])

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def meta_learning_of_first_order() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(model, adapted(model, x[:4], y[:4], False), (x[4:],))
        return functional.cross_entropy(out, y[4:])

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def an_adversarial_example() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moved = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(functional.cross_entropy(model(moved), y), moved)
        return functional.cross_entropy(model(x + 0.1 * slope.sign()), y)

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def jacobians_by_transforms() -> Any:
    def loss(model: Any, x: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.jacrev(model))(x)
        bends = torch.func.vmap(torch.func.hessian(lambda row: model(row).sum()))(x[:2])
        result: Tensor = slopes.square().mean() + bends.square().mean() + model(x).mean()
        return result

    return critic(6), loss, (torch.randn(4, 6),)


@program
def a_map_over_rows() -> Any:
    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.vmap(model)(x), y)

    return mlp(), loss, (torch.randn(8, 16), classes(8))


@program
def a_directional_derivative() -> Any:
    def loss(model: Any, x: Tensor) -> Tensor:
        value, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))[:2]
        result: Tensor = slope.square().mean() + value.square().mean()
        return result

    return critic(), loss, (torch.randn(8, 16),)
