"""A network that solves a heat equation from its derivatives, in plain PyTorch."""

import math

import torch
from torch import nn

import mpcompile


class Field(nn.Module):
    """A temperature at places and times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1)
        )

    def forward(self, place, time):
        """Return the temperature; it is zero at both ends."""
        inside = self.layers(torch.cat([place, time], 1))
        return inside * place * (1 - place) * 4


def slope(value, of):
    """Return the derivative of a value, which can be differentiated again."""
    return torch.autograd.grad(value.sum(), of, create_graph=True)[0]


def loss(field, place, time):
    """Return the mean square of what is wrong in the equation and at the start."""
    place, time = place.requires_grad_(), time.requires_grad_()
    heat = field(place, time)
    wrong = slope(heat, time) - 0.1 * slope(slope(heat, place), place)
    start = field(place, torch.zeros_like(time)) - torch.sin(math.pi * place)
    return wrong.square().mean() + start.square().mean()


def batches(count, seed=1):
    """Yield places and times between 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.rand(128, 1, generator=random), torch.rand(128, 1, generator=random)


def main():
    """Train for sixty steps; return the largest error of the temperature."""
    torch.manual_seed(0)
    field = Field()
    optimizer = torch.optim.Adam(field.parameters(), lr=0.005)
    step = mpcompile.compile(field, loss, optimizer, next(batches(1)))
    for place, time in batches(60):
        step(place, time)
    place, time = next(batches(1, seed=2))
    exact = torch.sin(math.pi * place) * torch.exp(-0.1 * math.pi**2 * time)
    with torch.no_grad():
        return float((field(place, time) - exact).abs().max())


if __name__ == "__main__":
    print(f"error {main():.3f}")
