"""A classifier of small images, trained by a loop in plain PyTorch."""

import torch
from torch import nn


class Network(nn.Module):
    """A convolution, a batch norm and a head."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        """Return two logits per image."""
        return self.head(self.norm(self.convolution(x)).relu().mean((2, 3)))


def loss(model, x, y):
    """Cross entropy."""
    return nn.functional.cross_entropy(model(x), y)


def batches(count):
    """Yield noise, brighter for one class than for the other."""
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        y = torch.randint(2, (16,), generator=random)
        x = torch.randn(16, 1, 8, 8, generator=random)
        yield x + y[:, None, None, None], y


def main():
    """Train for twenty steps and return the last loss."""
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for x, y in batches(20):
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        schedule.step()
    return float(value.detach())


if __name__ == "__main__":
    print(f"loss {main():.3f}")
