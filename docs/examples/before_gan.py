"""A GAN that draws points of a ring, trained by a loop in plain PyTorch."""

import torch
from torch import nn

bce = nn.functional.binary_cross_entropy_with_logits


class Generator(nn.Sequential):
    """A network from noise to points."""

    def __init__(self):
        super().__init__(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))


class Discriminator(nn.Sequential):
    """A network from points to logits."""

    def __init__(self):
        super().__init__(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def discriminator_loss(nets, real, noise):
    """Return the loss that teaches to tell real points from made ones."""
    generator, discriminator = nets
    right, wrong = discriminator(real), discriminator(generator(noise).detach())
    return bce(right, torch.ones_like(right)) + bce(wrong, torch.zeros_like(wrong))


def generator_loss(nets, noise):
    """Return the loss that teaches to make points that pass as real."""
    generator, discriminator = nets
    logits = discriminator(generator(noise))
    return bce(logits, torch.ones_like(logits))


def batches(count, seed=1):
    """Yield points of a ring around (2, 1), and noise."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        angle = 6.2832 * torch.rand(64, generator=random)
        ring = torch.stack([2 + angle.cos(), 1 + angle.sin()], 1)
        yield ring, torch.randn(64, 4, generator=random)


def distance(generator):
    """Return how far means and spreads of made points are from the ring's, over 8 batches."""
    generator.eval()
    with torch.no_grad():
        pairs = [(real, generator(noise)) for real, noise in batches(8, seed=2)]
    return sum(
        (real.mean(0) - made.mean(0)).norm() + (real.std(0) - made.std(0)).norm()
        for real, made in pairs
    ) / len(pairs)


def main():
    """Train for forty rounds; return the distance of the made points from the ring."""
    torch.manual_seed(0)
    generator, discriminator = nets = Generator(), Discriminator()
    critic = torch.optim.Adam(discriminator.parameters(), lr=0.002, betas=(0.5, 0.999))
    artist = torch.optim.Adam(generator.parameters(), lr=0.002, betas=(0.5, 0.999))
    for real, noise in batches(40):
        critic.zero_grad()
        discriminator_loss(nets, real, noise).backward()
        critic.step()
        artist.zero_grad()
        generator_loss(nets, noise).backward()
        artist.step()
    return float(distance(generator))


if __name__ == "__main__":
    print(f"distance {main():.3f}")
