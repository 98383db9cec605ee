"""DCGAN's two nets, arXiv 1511.06434, each trained while the other stays fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpcompile import Workload

F = nn.functional
NOISE, WIDTH = 16, 32


class Generator(nn.Sequential):
    """Noise ``[N, 16, 1, 1]`` to images ``[N, 3, 16, 16]`` by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(NOISE, 2 * WIDTH, 4, bias=False),
            nn.BatchNorm2d(2 * WIDTH), nn.ReLU(True),
            nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False),
            nn.BatchNorm2d(WIDTH), nn.ReLU(True),
            nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip


class Discriminator(nn.Sequential):
    """Images ``[N, 3, 16, 16]`` to a logit ``[N, 1]`` by strided convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * WIDTH),
            nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(2 * WIDTH, 1, 4), nn.Flatten(),
        )  # fmt: skip


class Against(nn.Module):
    """The generator, judged by a discriminator that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.judge = Generator(), Discriminator()
        self.judge.requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        logits: Tensor = self.judge(self.generator(noise))
        return logits


def fool(model: nn.Module, noise: Tensor) -> Tensor:
    """Return the loss of generated images that the discriminator recognises."""
    logits = model(noise)
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def tell_apart(model: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return the loss of separating real images from generated ones."""
    yes, no = model(real), model(made)
    return F.binary_cross_entropy_with_logits(
        yes, torch.ones_like(yes)
    ) + F.binary_cross_entropy_with_logits(no, torch.zeros_like(no))


def generator() -> Workload:
    """A generator step: the gradient comes through the discriminator."""
    torch.manual_seed(0)
    model = Against()
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return Workload(model, (torch.randn(8, NOISE, 1, 1),), fool, optimizer)


def discriminator() -> Workload:
    """A discriminator step: two batches through one net."""
    torch.manual_seed(0)
    model = Discriminator()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    images = torch.randn(2, 8, 3, 16, 16).tanh()
    return Workload(model, (images[0], images[1]), tell_apart, optimizer)
