"""Nets of torchvision and timm, without weights, with the losses that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Loss = Callable[..., torch.Tensor]

DETECTORS = (
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    *("retinanet_resnet50_fpn", "ssd300_vgg16"),
    *("ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    "fcos_resnet50_fpn",
)
FEW = {
    "rpn_pre_nms_top_n_train": 64,
    "rpn_post_nms_top_n_train": 32,
    "rpn_batch_size_per_image": 4096,
    "box_batch_size_per_image": 512,
}
"""Few proposals, and samples so large that none is left out at random."""
SEGMENTERS = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_mobilenet_v3_large")


def detector(name: str) -> tuple[nn.Module, Loss, Any]:
    """Return a detector, the sum of its own losses, and two images with boxes."""
    from torchvision.models import detection

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 4}
    if name.startswith("keypoint"):
        options["num_classes"] = 2
    if not name.startswith("ssd"):
        options |= {"min_size": 64, "max_size": 96}
    if "rcnn" in name:
        options |= FEW
    model: nn.Module = getattr(detection, name)(**options).train()

    def loss(model: nn.Module, images: list[Any], targets: list[Any]) -> torch.Tensor:
        parts = model(images, targets)
        total: torch.Tensor = sum(parts.values())
        return total

    images = [torch.rand(3, 64, 80), torch.rand(3, 72, 64)]
    targets = [_target(image, name) for image in images]
    return model, loss, (images, targets)


def _target(image: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if name.startswith("mask"):
        target["masks"] = (torch.rand(2, *image.shape[1:]) > 0.5).to(torch.uint8)
    if name.startswith("keypoint"):
        corners = torch.rand(2, 17, 2) * 20 + boxes[:, None, :2]
        target["keypoints"] = torch.cat([corners, torch.ones(2, 17, 1)], -1)
    return target


def segmenter(name: str) -> tuple[nn.Module, Loss, Any]:
    """Return a segmentation net, and images with a class for each pixel."""
    from torchvision.models import segmentation

    torch.manual_seed(0)
    build = getattr(segmentation, name)
    model: nn.Module = build(weights=None, weights_backbone=None, num_classes=4).train()

    def loss(model: nn.Module, image: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(image)["out"], wanted)

    return model, loss, (torch.rand(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64)))


def classifier(name: str) -> tuple[nn.Module, Loss, Any]:
    """Return a net of torchvision (``torchvision:NAME``) or of timm, for images in ten classes."""
    torch.manual_seed(0)
    library, _, kind = name.rpartition(":")
    if library == "torchvision":
        from torchvision import models

        model: nn.Module = models.get_model(kind, weights=None, num_classes=10)
    else:
        import timm

        model = timm.create_model(kind, pretrained=False, num_classes=10)

    def loss(model: nn.Module, image: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        result = model(image)
        parts = result if isinstance(result, tuple) else (result,)
        logits = [part for part in parts if isinstance(part, torch.Tensor)]
        return torch.stack([functional.cross_entropy(part, wanted) for part in logits]).mean()

    # Over two images a batch norm returns signs, and its gradient is noise.
    count = 8 if any(isinstance(each, nn.BatchNorm1d) for each in model.modules()) else 2
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 96, 96))
    side = min(size[-1], 224) if getattr(model, "default_cfg", {}).get("fixed_input_size") else 96
    return model, loss, (torch.rand(count, 3, side, side), torch.arange(count))


def video(name: str) -> tuple[nn.Module, Loss, Any]:
    """Return a net for clips in ten classes."""
    from torchvision.models import video as nets

    torch.manual_seed(0)
    model: nn.Module = getattr(nets, name)(weights=None, num_classes=10)

    def loss(model: nn.Module, clip: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(clip), wanted)

    side = 224 if name.startswith("mvit") else 64
    return model, loss, (torch.rand(2, 3, 16, side, side), torch.tensor([0, 1]))


def optical_flow() -> tuple[nn.Module, Loss, Any]:
    """Return RAFT, which estimates a flow again and again, and the sum over its estimates."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    model: nn.Module = raft_small(weights=None)

    def loss(
        model: nn.Module, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor
    ) -> torch.Tensor:
        flows = model(first, second, num_flow_updates=2)
        return torch.stack([(found - flow).abs().mean() for found in flows]).sum()

    images = torch.rand(2, 2, 3, 128, 128) * 2 - 1
    return model, loss, (images[0], images[1], torch.rand(2, 2, 128, 128))
