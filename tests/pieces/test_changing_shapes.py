"""Batches whose shapes, constants and results differ, as a detector's do: one graph serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide
from torch import Tensor, nn
from torch.nn import functional

import mpcompile
from mpcompile import FULL_PRECISION, Policy

Target = dict[str, Any]


class Detector(nn.Module):
    """Finds boxes where the scores are high, image by image, and matches them with the targets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.box, self.score, self.second = nn.Linear(8, 4), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        losses = []
        for image, target in zip(images, targets, strict=True):
            places = self.trunk(image[None]).relu().flatten(2)[0].t()
            scores = self.score(places)
            kept = torch.where(scores[:, 0] > scores[:, 0].mean())[0]
            found = places[kept]
            boxes = self.box(found)
            near = torch.cdist(boxes.detach(), target["boxes"]).argmin(1)
            wanted = target["boxes"][near]
            losses.append((boxes - wanted).abs().mean())
            losses.append(functional.cross_entropy(scores[kept], target["labels"][near]))
            hit = (wanted - boxes.detach()).abs().mean(1) < 0.75
            if hit.any():
                losses.append((self.second(found[hit]) - wanted[hit]).square().mean())
        return torch.stack(losses).mean()


def loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
    value: Tensor = model(images, targets)
    return value


def detections(count: int, images: int = 2) -> list[Any]:
    """Return batches of images of any size, with one to eight boxes each."""
    draw = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def target(name: int) -> Target:
        boxes = number(1, 9)
        return {
            "boxes": torch.rand(boxes, 4, generator=draw),
            "labels": torch.randint(0, 3, (boxes,), generator=draw),
            "name": f"image {name}",
        }

    return [
        (
            [
                torch.rand(3, 4 * number(5, 12), 4 * number(5, 12), generator=draw)
                for _ in range(images)
            ],
            [target(images * batch + index) for index in range(images)],
        )
        for batch in range(count)
    ]


@pytest.mark.parametrize("policy", [FULL_PRECISION, Policy()])
def test_a_detector_trains_as_in_eager_pytorch_and_is_not_compiled_again(policy: Policy) -> None:
    data = detections(15)
    pair = SideBySide(Detector(), loss, data[0], policy=policy)
    exact = policy is FULL_PRECISION

    def near(theirs: float) -> Any:  # in 16 bits a place near the mean may be chosen otherwise
        return theirs if exact else pytest.approx(theirs, rel=5e-2)

    for mine, theirs in pair.train(data[:11]):
        assert mine == near(theirs)
    pieces, known = len(pair.step.pieces), len(pair.step._all._programs)
    assert known <= 2  # with copies of the weights in 16 bits, and before without
    for mine, theirs in pair.train(data[11:]):
        assert mine == near(theirs)
    assert len(pair.step.pieces) == pieces
    assert len(pair.step._all._programs) == known
    assert not exact or pair.differing() == []


def test_a_batch_of_fewer_images_has_a_graph_of_its_own() -> None:
    data = [*detections(2), *detections(2, images=1), *detections(1)]
    pair = SideBySide(Detector(), loss, data[0])
    for mine, theirs in pair.train(data):
        assert mine == theirs
    assert pair.differing() == []
    assert len(pair.step._all._programs) == 2


def test_a_shape_is_compiled_by_inductor_for_all_sizes() -> None:
    data = detections(4, images=1)
    pair = SideBySide(Detector(), loss, data[0], backend="inductor")
    for mine, theirs in pair.train(data):
        assert mine == pytest.approx(theirs, rel=1e-5)


def rows_beside(model: nn.Module, parts: list[Tensor]) -> Any:
    out = model(torch.cat(parts))
    kept = [row for row in out if row.sum().item() > 0]
    value = out.square().mean()
    return (value, {"kept": kept, "count": len(kept)}) if kept else value


def test_other_numbers_of_tensors_beside_the_loss_are_returned() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rows = torch.ones(3, 4)
    data = [rows * torch.tensor(signs)[:, None] for signs in ((1, 1, -1), (1, -1, -1), (1, 1, 1))]
    step = mpcompile.compile(model, rows_beside, optimizer, ([data[0]],), policy=FULL_PRECISION)
    for x, count in (*zip(data, (2, 1, 3), strict=True), (data[0], 2)):
        value, beside = step([x])
        assert float(value) == 1.0
        assert beside["count"] == count
        assert [row.tolist() for row in beside["kept"]] == [[1.0] * 4] * count
    assert float(step([-rows])) == 1.0
    assert step.taken == 5


def test_another_number_of_tensors_comes_on_a_way_that_was_met_before() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = mpcompile.compile(model, rows_beside, optimizer, ([x],), policy=FULL_PRECISION)
    one = torch.tensor([[1.0], [-1.0]])
    for batch, count in (([x], 2), ([x * one], 1), ([x], 2), ([x, -x], 2), ([x, x], 4)):
        value, beside = step(batch)
        assert float(value) == 1.0
        assert [row.tolist() for row in beside["kept"]] == [[1.0] * 4] * count
