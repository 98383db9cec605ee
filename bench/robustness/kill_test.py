"""Kill a run at random moments; the resumed run must end like an undisturbed one.

    python -m bench.robustness.kill_test [--runs 1000] [--seed 0]

Each run starts with an empty folder, saves a checkpoint every third step, and gets SIGKILL after a
random time, at least once; then it continues to its end. Its last checkpoint must equal that of an
undisturbed run, byte for byte: weights, optimizer, loss scale, counters, random numbers and the
position in the shuffled data. The runs are forks of one process that has compiled the step and
trained nothing, because starting Python and torch takes longer than the run.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpcompile
from bench.machine import describe
from mpcompile import LossScale, TrainStep, Workload
from mpcompile.commands.training.saved_run import SavedRun
from mpcompile.options.run import CheckpointFlags
from mpcompile.program.random_state import seed_all
from mpcompile.train.checkpoint_file import MANIFEST, STATE, write_checkpoint
from mpcompile.train.checkpoint_folder import checkpoints, folder_of

STEPS, EVERY, KEEP = 15, 3, 2
PHASES = ("before the first step", "in training", "in writing a checkpoint")


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of a batch."""
    return nn.functional.cross_entropy(model(x), y)


def program() -> Workload:
    """Make a classifier with dropout and batch norm, on data that is shuffled each epoch."""
    seed_all(0)
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    )
    rows = TensorDataset(torch.randn(60, 8), torch.randint(0, 4, (60,)))
    data: Any = DataLoader(rows, batch_size=12, shuffle=True)
    batch = torch.zeros(12, 8), torch.zeros(12, dtype=torch.int64)
    return Workload(net, batch, loss, torch.optim.AdamW(net.parameters(), lr=1e-2), data)


def compiled(made: Workload) -> TrainStep:
    """Compile a program with a loss scale that is too large at first and changes often."""
    assert made.optimizer is not None
    scale = LossScale(2.0**22, interval=3)
    return mpcompile.compile(made.model, loss, made.optimizer, made.batch, loss_scale=scale)


def trained(made: Workload, step: TrainStep, folder: Path, phase: mmap.mmap) -> None:
    """Start the run of a folder, or resume it, and train to its end."""

    def noted(*arguments: Any) -> None:
        phase[0] = 2
        write_checkpoint(*arguments)
        phase[0] = 1

    random.seed(0)  # Python seeds its own generator again in a fork
    with patch("mpcompile.train.checkpoint.write_checkpoint", noted):
        saving = CheckpointFlags(folder, checkpoint_every=EVERY, resume=True, keep=KEEP)
        run = SavedRun(step, made, saving, Console(quiet=True))
        for batch in run.batches(STEPS):
            phase[0] = 1
            step(*batch)


def forked(task: Callable[[], None], kill_after: float | None = None) -> bool:
    """Run a task in a fork; return whether it was killed.

    Args:
        task: the task.
        kill_after: seconds until it is killed; None lets it end.

    Raises:
        RuntimeError: the task failed.
    """
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError("a run failed; its traceback stands above")
    return False


def last_of(folder: Path) -> tuple[str, bytes]:
    """Return the SHA-256 of the final weights, and the manifest of the whole state."""
    last = folder_of(folder, STEPS)
    state = load_file(last / STATE)
    weights = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("model.")):
        weights.update(name.encode() + state[name].numpy().tobytes())
    return weights.hexdigest(), (last / MANIFEST).read_bytes()


@dataclass
class Outcome:
    """The outcome of the runs.

    Attributes:
        runs: how many were killed and resumed.
        kills: number of kills, by the phase that they hit.
        other: runs with other final weights than the undisturbed one.
        state: runs with any other final byte.
        sha256: hash of the undisturbed run's final weights.
    """

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    other: int = 0
    state: int = 0
    sha256: str = ""


def kill_test(runs: int, seed: int, place: Path) -> Outcome:
    """Kill and resume runs; see the module.

    Args:
        runs: how many runs.
        seed: the seed of the moments.
        place: an empty folder for their checkpoints.
    """
    torch.set_num_threads(1)  # a fork has no worker threads
    made = program()
    step = compiled(made)
    phase = mmap.mmap(-1, 1)
    chance = random.Random(seed)
    before = time.perf_counter()
    forked(lambda: trained(made, step, place / "undisturbed", phase))
    duration = time.perf_counter() - before
    expected = last_of(place / "undisturbed")
    outcome = Outcome(sha256=expected[0])
    while outcome.runs < runs:
        folder = place / "killed"
        killed = 0
        while not killed or chance.random() < 0.25:
            phase[0] = 0
            task = lambda: trained(made, step, folder, phase)  # noqa: B023, E731
            if not forked(task, chance.uniform(0, duration)):
                break  # it has ended before
            killed += 1
            outcome.kills[PHASES[phase[0]]] += 1
        if killed:
            forked(lambda: trained(made, step, folder, phase))  # noqa: B023
            found = last_of(folder)
            outcome.runs += 1
            outcome.other += found[0] != expected[0]
            outcome.state += found[1] != expected[1]
            # One more than are kept, if the last kill came before the oldest was removed.
            assert len(checkpoints(folder)) <= KEEP + 1
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def main() -> None:
    """Print the outcome of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        outcome = kill_test(given.runs, given.seed, Path(place))
    print(describe("cpu"))
    print(f"{outcome.runs} runs, killed {outcome.kills.total()} times: {dict(outcome.kills)}")
    print(f"other final weights: {outcome.other}; any other byte: {outcome.state}")
    print(f"SHA-256 of the final weights: {outcome.sha256}")
    print(f"{time.perf_counter() - begin:.0f} s")
    raise SystemExit(bool(outcome.other or outcome.state))


if __name__ == "__main__":
    main()
