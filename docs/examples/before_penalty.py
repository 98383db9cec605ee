"""A Wasserstein GAN with a gradient penalty, on points of a ring, in plain PyTorch."""

import torch
from torch import nn


def net(inputs, outputs):
    """Return a small network."""
    return nn.Sequential(nn.Linear(inputs, 32), nn.SiLU(), nn.Linear(32, outputs))


def critic_loss(nets, real, noise, share):
    """Return the critic's loss, with the penalty on its slope between real and made points."""
    generator, critic = nets
    made = generator(noise).detach()
    between = (share * real + (1 - share) * made).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return critic(made).mean() - critic(real).mean() + 10 * penalty


def generator_loss(nets, noise):
    """Return the loss that teaches to make points which the critic takes for real."""
    generator, critic = nets
    return -critic(generator(noise)).mean()


def batches(count, seed=1):
    """Yield points of a ring around (1, 0), noise, and shares between 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        angle = 6.2832 * torch.rand(64, generator=random)
        ring = torch.stack([1 + angle.cos(), angle.sin()], 1)
        yield ring, torch.randn(64, 4, generator=random), torch.rand(64, 1, generator=random)


def distance(generator):
    """Return how far the means of made points are from the ring's, over 8 batches."""
    with torch.no_grad():
        pairs = [(real, generator(noise)) for real, noise, _ in batches(8, seed=2)]
    return sum((real.mean(0) - made.mean(0)).norm() for real, made in pairs) / len(pairs)


def main():
    """Train the critic 300 times, the generator 100 times; return the distance."""
    torch.manual_seed(0)
    nets = nn.ModuleList((net(4, 2), net(2, 1)))
    artist = torch.optim.Adam(nets[0].parameters(), lr=0.001, betas=(0.5, 0.9))
    judge = torch.optim.Adam(nets[1].parameters(), lr=0.01, betas=(0.5, 0.9))
    for number, (real, noise, share) in enumerate(batches(300)):
        judge.zero_grad()
        critic_loss(nets, real, noise, share).backward()
        judge.step()
        if number % 3 == 2:
            artist.zero_grad()
            generator_loss(nets, noise).backward()
            artist.step()
    return float(distance(nets[0]))


if __name__ == "__main__":
    print(f"distance {main():.3f}")
