"""Time a step of an LSTM cell that Python calls in a loop, beside another checkout.

``python -m bench.speed.recurrent_cell --beside FOLDER [--rounds 5]``

The cell runs over 300 steps, for a batch of 16 with 32 numbers a step and a state of 64, in pseudo
FP16 as FX code. The checkouts take turns, each in its own process with one thread. Prints the
milliseconds of processor time of a step, least, median and greatest, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import mpcompile
from bench.machine import describe
from bench.speed.step_overhead import HERE, rounds_of

STEPS, BATCH, READS, STATE, CLASSES = 300, 16, 32, 64, 8


class Recurrent(nn.Module):
    """A cell over the first axis, and a head that reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(READS, STATE), nn.Linear(STATE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of an input of ``(STEPS, BATCH, READS)``."""
        state = cell = torch.zeros(BATCH, STATE)
        for item in x:
            state, cell = self.cell(item, (state, cell))
        logits: Tensor = self.head(state)
        return logits


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy."""
    return nn.functional.cross_entropy(model(x), y)


def take_turns() -> None:
    """For each line that comes in, write the milliseconds of a step as one line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(STEPS, BATCH, READS), torch.randint(0, CLASSES, (BATCH,))
    step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter", verify=False)
    step(*batch)
    for _ in sys.stdin:
        begin = time.process_time()
        step(*batch)
        print(json.dumps(1e3 * (time.process_time() - begin)), flush=True)


def main() -> None:
    """Print one row per checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--beside", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns:
        take_turns()
        return
    folders = [HERE] + ([options.beside.resolve()] if options.beside else [])
    found = rounds_of(folders, options.rounds, __file__)
    for folder, times in zip(folders, found, strict=True):
        print(f"{min(times):8.1f} {median(times):8.1f} {max(times):8.1f} ms  {folder.name}")
    print(f"ratio of the medians {median(found[0]) / median(found[-1]):.2f}")
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
