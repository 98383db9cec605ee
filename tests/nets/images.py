"""Convolutional nets: U-Net, ResNets, Inception, DenseNet, squeeze-excite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpcompile import Workload

F = nn.functional
CLASSES = 10


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def _classifier(make: type[nn.Module], *arguments: object, size: int = 16) -> Workload:
    """Train a net on 4 images ``[4, 3, size, size]``."""
    torch.manual_seed(0)
    model = make(*arguments)
    images, labels = torch.randn(4, 3, size, size), torch.randint(CLASSES, (4,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Workload(model, (images, labels), cross_entropy, optimizer)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, stride: int = 1
    ):
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """arXiv 1505.04597: skips joined by concatenation; one upsampling is learned, one bilinear."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down1, self.down2 = self._pair(3, width), self._pair(width, 2 * width)
        self.bottom = self._pair(2 * width, 2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, 2 * width, 2, stride=2)
        self.join2 = self._pair(4 * width, width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.join1 = self._pair(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(ConvNormAct(inputs, outputs), ConvNormAct(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.join2(torch.cat([b, self.up2(c)], dim=1))
        a = self.join1(torch.cat([a, self.up1(b)], dim=1))
        logits: Tensor = self.head(a)
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions and a skip, arXiv 1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormAct(inputs, outputs, 3, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a skip, arXiv 1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.body = nn.Sequential(
            ConvNormAct(inputs, width, 1),
            ConvNormAct(width, width, 3, stride),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem with max pooling, two stages of two blocks, global pool, classifier."""

    def __init__(self, block: type[nn.Module], widths: tuple[int, int]) -> None:
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(ConvNormAct(3, 32), nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.Sequential(
            block(32, first, 1),
            block(first, first, 1),
            block(first, second, 2),
            block(second, second, 1),
        )
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.stages(self.stem(x)), 1).flatten(1)
        logits: Tensor = self.head(x)
        return logits


class InceptionBlock(nn.Module):
    """Four branches over one input, joined by channel, arXiv 1409.4842 and 1512.00567."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = ConvNormAct(inputs, width, 1)
        self.three = nn.Sequential(
            ConvNormAct(inputs, width // 2, 1), ConvNormAct(width // 2, width)
        )
        self.seven = nn.Sequential(
            ConvNormAct(inputs, width // 2, 1),
            ConvNormAct(width // 2, width // 2, (1, 7)),
            ConvNormAct(width // 2, width, (7, 1)),
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), ConvNormAct(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.seven(x), self.pool(x)], dim=1)


class Inception(nn.Module):
    """Stem, two blocks around a max pool, dropout before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormAct(3, 32), InceptionBlock(32, 32), nn.MaxPool2d(3, 2, padding=1),
            InceptionBlock(128, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        )  # fmt: skip
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3, joined to all earlier features, arXiv 1608.06993."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True),
            nn.Conv2d(inputs, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class DenseNet(nn.Module):
    """Two dense blocks of three layers around a transition."""

    def __init__(self, width: int = 32, growth: int = 16) -> None:
        super().__init__()
        wide = width + 3 * growth
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.first = nn.Sequential(*[DenseLayer(width + i * growth, growth) for i in range(3)])
        self.transition = nn.Sequential(
            nn.BatchNorm2d(wide), nn.ReLU(inplace=True), nn.Conv2d(wide, width, 1, bias=False),
            nn.AvgPool2d(2),
        )  # fmt: skip
        self.second = nn.Sequential(*[DenseLayer(width + i * growth, growth) for i in range(3)])
        self.norm = nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.transition(self.first(self.stem(x))))
        logits: Tensor = self.head(F.relu(self.norm(x), inplace=True).mean(dim=(2, 3)))
        return logits


class SqueezeExcite(nn.Module):
    """A bottleneck whose channels are gated by their means, arXiv 1709.01507 and 1905.02244."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide), nn.SiLU(),
        )  # fmt: skip
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, channels // 4, 1), nn.SiLU(),
            nn.Conv2d(channels // 4, wide, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        result: Tensor = x + self.project(y * self.gate(y))
        return result


class SqueezeExciteNet(nn.Module):
    """Stem, two gated blocks, head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU(),
            SqueezeExcite(width), SqueezeExcite(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def unet() -> Workload:
    """Label each pixel of 2 images ``[2, 3, 16, 16]``."""
    torch.manual_seed(0)
    model = UNet()
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(CLASSES, (2, 16, 16))
    return Workload(
        model, (images, labels), cross_entropy, torch.optim.AdamW(model.parameters(), lr=1e-3)
    )


def resnet_basic() -> Workload:
    """Two stages of basic blocks, post-activation."""
    return _classifier(ResNet, Basic, (32, 64))


def resnet_bottleneck() -> Workload:
    """Two stages of bottlenecks, post-activation."""
    return _classifier(ResNet, Bottleneck, (64, 128))


def inception() -> Workload:
    """Branches of one input, joined by channel."""
    return _classifier(Inception)


def densenet() -> Workload:
    """Each layer reads all layers before it."""
    return _classifier(DenseNet)


def squeeze_excite() -> Workload:
    """Gated inverted bottlenecks with depthwise convolutions."""
    return _classifier(SqueezeExciteNet, size=32)
