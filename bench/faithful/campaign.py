"""Random programs, each trained beside eager PyTorch: the same bits, or a refusal.

    python -m bench.faithful.campaign [--count 20000] [--seed 0] [--only NUMBER]

The policy is FP32, which changes no bit. Each program has custom autograd Functions, hooks, buffers
and weights that it writes, and numbers that it reads; some of them change between two calls.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import mpcompile
from bench.faithful.changes import CHANGES, HOOKS
from bench.faithful.parts import PARTS, WIDTH, Net, loss
from bench.machine import describe
from mpcompile import FULL_PRECISION
from mpcompile.errors import CompileError

STEPS = 20
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=5e-3),
}


@dataclass(frozen=True)
class Program:
    """A random program.

    Attributes:
        number: its number in the campaign, which is its seed.
        parts: names of `PARTS`, one a block.
        hooks: names of `HOOKS` and their numbers, before compiling.
        changes: by step, a name of `CHANGES` and its number.
        optimizer: a name of `OPTIMIZERS`.
    """

    number: int
    parts: tuple[str, ...]
    hooks: tuple[tuple[str, int], ...]
    changes: dict[int, tuple[str, int]]
    optimizer: str


@dataclass
class Outcome:
    """How programs ended.

    Attributes:
        same: programs that trained 20 steps to the same bits.
        refused: sentences of refusals with their counts.
        differing: programs that differ, with the first step.
        failed: programs that ended in another error, with its text.
    """

    same: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    differing: list[tuple[Program, int]] = field(default_factory=list)
    failed: list[tuple[Program, str]] = field(default_factory=list)


def program(number: int) -> Program:
    """Make a program from its number."""
    chooser = random.Random(number)
    parts = tuple(chooser.choice([*PARTS]) for _ in range(chooser.randint(1, 2)))
    hooks = tuple(
        (chooser.choice([*HOOKS]), chooser.randint(0, 2)) for _ in range(chooser.choice([0, 0, 1]))
    )
    steps = sorted(chooser.sample(range(1, STEPS), chooser.choice([0, 0, 1, 2, 3])))
    changes = {step: (chooser.choice([*CHANGES]), chooser.randint(0, 4)) for step in steps}
    return Program(number, parts, hooks, changes, chooser.choice([*OPTIMIZERS]))


def outcome_of(made: Program) -> tuple[str, int, str]:
    """Train a program both ways.

    Returns:
        ``same``, ``refused``, ``differs`` or ``failed``; the step; a sentence.
    """
    torch.manual_seed(made.number)
    net = Net(made.parts)
    eager = copy.deepcopy(net)
    optimizer, theirs = (OPTIMIZERS[made.optimizer](each.parameters()) for each in (net, eager))
    for name, number in made.hooks:
        HOOKS[name](net, optimizer, number)
        HOOKS[name](eager, theirs, number)
    data = [(torch.randn(6, WIDTH), torch.randn(6, WIDTH)) for _ in range(STEPS)]
    at = 0
    try:
        step = mpcompile.compile(net, loss, optimizer, data[0], policy=FULL_PRECISION)
        for at, batch in enumerate(data):
            if at in made.changes:
                name, number = made.changes[at]
                for model, trainer in ((net, optimizer), (eager, theirs)):
                    torch.manual_seed(at)
                    CHANGES[name](model, trainer, number)
            torch.manual_seed(at)
            mine = step(*batch).detach()
            torch.manual_seed(at)
            value = loss(eager, *batch)
            theirs.zero_grad()
            value.backward()
            theirs.step()
            alike = torch.equal(mine, value.detach()) and _same_state(net, eager)
            if not alike:
                return "differs", at, f"{float(mine)} instead of {float(value)}"
    except CompileError as error:
        return "refused", at, error.what
    except Exception as error:
        return "failed", at, f"{type(error).__name__}: {error}"
    return "same", STEPS, ""


def _same_state(net: torch.nn.Module, eager: torch.nn.Module) -> bool:
    mine, theirs = net.state_dict(), eager.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(value.nan_to_num(), theirs[name].nan_to_num()) for name, value in mine.items()
    )


def campaign(numbers: Iterator[int]) -> Outcome:
    """Try programs by their numbers."""
    found = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            made = program(number)
            kind, at, text = outcome_of(made)
            if kind == "same":
                found.same += 1
            elif kind == "refused":
                found.refused[text] += 1
            elif kind == "differs":
                found.differing.append((made, at))
            else:
                found.failed.append((made, text))
    return found


def main() -> None:
    """Run the campaign and print what came of it."""
    parser = argparse.ArgumentParser(description="Train random programs.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    if options.only is not None:
        made = program(options.only)
        print(made, *outcome_of(made), sep="\n")
        return
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = campaign(iter(range(options.seed, options.seed + options.count)))
    print(describe("cpu"))
    print(f"{options.count} programs of {STEPS} steps from {options.seed} on,", end=" ")
    print(f"{time.perf_counter() - begin:.0f} s")
    print(f"the same bits: {found.same}; refused: {found.refused.total()};", end=" ")
    print(f"differing: {len(found.differing)}; other errors: {len(found.failed)}")
    for text, count in found.refused.most_common():
        print(f"{count:6}  {text}")
    for made, at in found.differing:
        print(f"differs at step {at}: {made}")
    for made, text in found.failed:
        print(f"{text}: {made}")
    raise SystemExit(bool(found.differing or found.failed))


if __name__ == "__main__":
    main()
