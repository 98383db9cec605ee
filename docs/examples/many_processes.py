"""Train on all processes of ``torchrun --nproc-per-node 2 many_processes.py``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import distributed, nn

import mpcompile


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of a batch: a mean over its rows."""
    return nn.functional.cross_entropy(model(x), y)


def batches(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield points and their quadrants, other points on each process."""
    generator = torch.Generator().manual_seed(distributed.get_rank())
    for _ in range(count):
        x = torch.randn(64, 2, generator=generator)
        yield x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def main() -> float:
    """Train; return the loss of the last batch."""
    distributed.init_process_group()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step = mpcompile.compile(
        model,
        loss,
        optimizer,
        next(batches(1)),
        parallel=mpcompile.data_parallel(shard=True),
    )
    for x, y in batches(60):
        value = step(x, y)
    with step.whole():
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if distributed.get_rank() == 0:
        print(f"{len(weights)} tensors, loss {float(value):.3f}")
    distributed.destroy_process_group()
    return float(value)


if __name__ == "__main__":
    main()
