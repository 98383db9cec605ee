"""A detector of squares whose loss loops over the boxes of each picture, in plain PyTorch."""

import torch
from torch import nn

import mpcompile


class Detector(nn.Module):
    """A score and a size for each cell of eight pixels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 2, 1)),
        )

    def forward(self, pictures):
        """Return the scores and the sizes."""
        return self.layers(pictures).unbind(1)


def loss(detector, pictures, boxes):
    """Return the error of the scores of all cells, and of the sizes of cells with a box."""
    scores, sizes = detector(pictures)
    wanted, total = torch.zeros_like(scores), 0.0
    for index, found in enumerate(boxes):
        found = found[found[:, 2] > 0]
        if len(found) == 0:
            continue
        row, column = found[:, 0], found[:, 1]
        wanted[index, row, column] = 1.0
        total = total + (sizes[index, row, column] - found[:, 2] / 4).abs().mean()
    return nn.functional.binary_cross_entropy_with_logits(scores, wanted) + total / len(boxes)


def batches(count, seed=1):
    """Yield pictures, and row, column and size of up to three squares; size 0 is none."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        boxes = torch.randint(0, 4, (8, 3, 3), generator=random)
        boxes[..., 2] = torch.randint(0, 5, (8, 3), generator=random)
        pictures = 0.1 * torch.randn(8, 1, 32, 32, generator=random)
        for picture, row, column, size in (
            (index, *box) for index, found in enumerate(boxes.tolist()) for box in found
        ):
            pictures[picture, 0, 8 * row : 8 * row + size, 8 * column : 8 * column + size] = 1.0
        yield pictures, boxes


def main():
    """Train for eighty steps; return the loss on pictures that were not seen."""
    torch.manual_seed(0)
    detector = Detector()
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.005)
    step = mpcompile.compile(detector, loss, optimizer, next(batches(1)))
    for pictures, boxes in batches(80):
        step(pictures, boxes)
    with torch.no_grad():
        return float(sum(loss(detector, *batch) for batch in batches(4, seed=2)) / 4)


if __name__ == "__main__":
    print(f"loss {main():.3f}")
