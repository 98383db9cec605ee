"""Checkpoints of a step on many processes: one folder, with the same files as for one process.

The first process writes the folder. To load it, each process reads all of it and keeps its part.
So the folder must be on a file system that all processes see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from mpcompile.errors import BadInput, CompileError
from mpcompile.program.random_state import every_state
from mpcompile.step.processes import DataParallel, all_say, first_says
from mpcompile.train import checkpoint
from mpcompile.train.checkpoint import Held, Stateful
from mpcompile.train.checkpoint_file import ProcessState

Whole = Callable[[torch.device], AbstractContextManager[None]]


def save(
    held: Callable[[], Held],
    run: Path,
    keep: int | None,
    also: Mapping[str, Stateful],
    parallel: DataParallel | None,
    whole: Whole,
) -> Path:
    """Write a checkpoint; see `mpcompile.TrainStep.save`.

    Args:
        held: returns the step's state.
        run: the folder of the run.
        keep: how many checkpoints stay.
        also: other objects with a state; each process has its own.
        parallel: the processes.
        whole: puts sharded state together.
    """
    if parallel is None:
        return checkpoint.save(held(), run, keep, also)
    with whole(torch.device("cpu")):
        mine = held()
        own = ProcessState(every_state(mine.device), {n: v.state_dict() for n, v in also.items()})
        every: list[Any] | None = [None] * parallel.ranks if parallel.rank == 0 else None
        distributed.gather_object(own, every, group=parallel.group, group_dst=0)
        outcome: Path | CompileError | None = None
        if every is not None:
            try:
                outcome = checkpoint.save(mine, run, keep, also, every[1:])
            except CompileError as error:
                outcome = error
    return _path(first_says(outcome, parallel))


def load(
    held: Callable[[], Held],
    run: Path,
    any_plan: bool,
    also: Mapping[str, Stateful],
    parallel: DataParallel | None,
    whole: Whole,
) -> Path:
    """Take over a checkpoint; see `mpcompile.TrainStep.load`.

    Args:
        held: returns the step's state, which is overwritten.
        run: the folder of the run, or one checkpoint.
        any_plan: whether the checkpoint may have another plan.
        also: other objects that load a state; each process has its own.
        parallel: the processes.
        whole: puts sharded state together.
    """
    if parallel is None:
        return checkpoint.load(held(), run, any_plan, also)
    with whole(torch.device("cpu")):
        mine = held()
        first = parallel.rank == 0
        found = _tried(mine, run, any_plan, also, parallel) if first else None
        folder = _path(first_says(found, parallel))
        result = folder if first else _tried(mine, folder, any_plan, also, parallel)
    for one in all_say(result, parallel):
        _path(one)
    return folder


def _tried(
    held: Held,
    run: Path,
    any_plan: bool,
    also: Mapping[str, Stateful],
    parallel: DataParallel,
) -> Path | CompileError:
    try:
        return checkpoint.load(held, run, any_plan, also, parallel.rank, parallel.ranks)
    except CompileError as error:
        return error


def _path(outcome: Path | CompileError) -> Path:
    if isinstance(outcome, CompileError):
        raise BadInput(outcome.what, outcome.where, outcome.fix)
    return outcome
