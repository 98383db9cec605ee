"""Train until the loss scale is found, as what comes before that says nothing about a program."""

from __future__ import annotations

from itertools import islice

from mpcompile.train_step import TrainStep
from mpcompile.workload import Workload, epochs

_WARM_UP = 25
"""Steps within which a dynamic loss scale comes down from 2**24 to 1."""


def warm_up(step: TrainStep, workload: Workload, steps: int) -> int:
    """Train until the loss scale has been good for a step, and then some; return how many steps.

    If it never is, the program is looked at with the scale it has come to.

    Args:
        step: trains the workload.
        workload: gives the batches; without data its example batch is all there is.
        steps: how many more.
    """
    count, first = 0, step.taken
    for batch in islice(epochs(workload), _WARM_UP):
        step(*batch)
        count += 1
        if step.taken > first:
            break
    for batch in islice(epochs(workload), count, count + steps):
        step(*batch)
        count += 1
    return count
