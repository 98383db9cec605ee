"""``kill -9`` at random moments, and a write that fails at each of its moments."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs.small_step import batch as net_batch
from programs.small_step import compiled as net_compiled
from programs.small_step import net
from safetensors.torch import load_file

import mpcompile.artifacts
import mpcompile.train.checkpoint_file
from bench.robustness.kill_test import STEPS, compiled, kill_test, program
from mpcompile import BadInput, TrainStep
from mpcompile.train.checkpoint_file import STATE
from mpcompile.train.checkpoint_folder import newest

RUNS = 60
LIMIT = 1 << 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    outcome = kill_test(RUNS, 0, tmp_path)
    assert outcome.runs == RUNS
    assert (outcome.other, outcome.state) == (0, 0)
    assert outcome.kills["in training"] > 5
    assert outcome.kills["in writing a checkpoint"] > 5


def test_the_killed_run_skips_steps_and_changes_its_scale() -> None:
    made = program()
    step = compiled(made)
    torch.manual_seed(0)
    assert made.data is not None
    for _ in range(STEPS // 4):
        for batch in made.data:
            step(*batch)
    assert step.skipped > 1
    assert step.taken > 1


class Died(BaseException):
    """What stands for the end of the process: nothing catches it but what cleans up after all."""


class Fault:
    """Lets so many calls of the system pass; the next one raises, and with it all that follow."""

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException, fatal: bool) -> None:
        self.left = sys.maxsize
        self.calls = 0
        self._error, self._fatal = error, fatal
        module: Any = mpcompile.train.checkpoint_file
        for owner, name in (
            (os, "fsync"),
            (os, "open"),
            (os, "mkdir"),
            (os, "rename"),
            (os, "replace"),
            (module, "save_file"),
            (Path, "write_bytes"),
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "chmod"),
        ):
            patch.setattr(owner, name, self._faulty(getattr(owner, name)))
        if fatal:  # the dead clean nothing up
            patch.setattr(shutil, "rmtree", self._faulty(shutil.rmtree))

    def _faulty(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            self.left -= 1
            if self.left < 0 and (self._fatal or self.left == -1):
                raise self._error
            return function(*arguments, **named)

        return call


@pytest.mark.parametrize("keep", [None, 1])
@pytest.mark.parametrize(
    ("error", "fatal"), [(Died(), True), (OSError(28, "No space left on device"), False)]
)
def test_whatever_call_fails_the_newest_complete_checkpoint_is_there(
    tmp_path: Path, error: BaseException, fatal: bool, keep: int | None
) -> None:
    """Wherever the second save ends, the run goes on from it or from the first."""
    step = net_compiled(net())
    step(*net_batch(0))
    calls = 0
    for left in range(1000):
        run = tmp_path / str(left)
        step.load(first_of(step, run))
        before = weights(step)
        step(*net_batch(1))
        after = weights(step)
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, error, fatal)
            fault.left = left
            try:
                step.save(run, keep=keep)
            except (BadInput, Died):
                pass
            else:
                calls = fault.calls
                break
        opened, wrong = newest(run, LIMIT)
        assert not wrong
        assert opened.checkpoint.steps in (1, 2)
        found = {n: v for n, v in load_file(opened.folder / STATE).items() if n in before}
        expected = before if opened.checkpoint.steps == 1 else after
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        if not fatal:  # the next save leaves no rests
            step.save(run, keep=keep)
            assert sorted(p.name for p in run.iterdir())[-1] == "step-00000002"
            assert not [p for p in run.iterdir() if p.name.startswith(".")]
    assert calls > 15


def first_of(step: TrainStep, run: Path) -> Path:
    """Return the checkpoint after the first step, in a run of its own."""
    first = run.parent / "first"
    if not first.exists():
        step.save(first)
    run.mkdir()
    (source,) = first.iterdir()
    target = run / source.name
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {
        name: value.clone()
        for name, value in step._bound.named().items()
        if name.startswith("model.")
    }
