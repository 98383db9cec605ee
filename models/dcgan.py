"""DCGAN's generator, trained against a discriminator that does not change.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (arXiv 1511.06434): transposed convolutions that double height and width from
4x4 up, batch norm and ReLU between them, tanh at the end; the discriminator is its mirror image
with leaky ReLU. Weights from N(0, 0.02), Adam with a first beta of 0.5.

A training step has one optimizer here, so this is the generator's half of a GAN. Its gradient
comes through the discriminator, which keeps its initial weights. It needs no images; its data are
the noise from which the generator starts.

``SIZE=full`` has the paper's widths for 64x64 RGB; ``SIZE=small`` (default) is the same code for
32x32, small enough for two CPU cores.

Environment: ``SIZE`` (small or full), ``DEVICE`` (default cpu), ``SEED`` (default 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from batches import Batches
from environment import chosen
from torch import Tensor, nn

from mpcompile import Workload


@dataclass(frozen=True, slots=True)
class Config:
    """A size of the networks, and how they are trained.

    Attributes:
        noise: length of the noise vector of an image.
        width: channels of the layer next to the image; each further layer doubles them.
        doublings: layers that double height and width after the first 4x4.
        channels: channels of an image.
        batch: images per step.
        rate: learning rate.
    """

    noise: int
    width: int
    doublings: int
    channels: int
    batch: int
    rate: float = 2e-4

    @property
    def image(self) -> int:
        """Height and width of an image."""
        return 4 << self.doublings


SMALL = Config(noise=64, width=16, doublings=3, channels=3, batch=32)
FULL = Config(noise=100, width=128, doublings=4, channels=3, batch=128)
SIZES = {"small": SMALL, "full": FULL}

EPOCH = 4096
"""The number of noise vectors in an epoch."""


class Generator(nn.Sequential):
    """Map noise ``[N, noise, 1, 1]`` to images ``[N, channels, H, H]`` in (-1, 1), both FP32."""

    def __init__(self, config: Config) -> None:
        wide = config.width << (config.doublings - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(config.noise, wide, 4, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
        ]
        for _ in range(config.doublings - 1):
            layers += [
                nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide // 2),
                nn.ReLU(inplace=True),
            ]
            wide //= 2
        last = nn.ConvTranspose2d(wide, config.channels, 4, stride=2, padding=1, bias=False)
        super().__init__(*layers, last, nn.Tanh())


class Discriminator(nn.Sequential):
    """Map images ``[N, channels, H, H]`` to FP32 logits ``[N, 1]`` of being real."""

    def __init__(self, config: Config) -> None:
        wide = config.width
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels, wide, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(config.doublings - 1):
            layers += [
                nn.Conv2d(wide, 2 * wide, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * wide),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            wide *= 2
        super().__init__(*layers, nn.Conv2d(wide, 1, 4, bias=False), nn.Flatten())


class Judged(nn.Module):
    """The generator and the discriminator that judges it; only the generator is trained."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)
        self.discriminator.requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        """Map FP32 noise ``[N, noise, 1, 1]`` to FP32 logits ``[N, 1]``."""
        logits: Tensor = self.discriminator(self.generator(noise))
        return logits


def loss(model: nn.Module, noise: Tensor) -> Tensor:
    """Return the generator's loss: the cross entropy of its images with the label real, in nats."""
    logits = model(noise)
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = Judged(size).to(device)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(EPOCH, size.noise, 1, 1, generator=generator).to(device)
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.generator.parameters(), lr=size.rate, betas=(0.5, 0.999)),
        batch=next(iter(Batches((noise,), size.batch, seed))),
        data=Batches((noise,), size.batch, seed),
    )
