"""Try thousands of malformed ONNX files in processes that may crash or hang.

    python -m bench.robustness.malformed --count 2000 --seed 0

Prints, per kind of damage, how many files were refused and how many are still valid models, and
exits with 1 if any of them caused an error: a crash, a hang, a traceback, access to a file
outside, or an exit code other than 2 for a refused file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.isolated import Failure, Isolated
from bench.robustness.malformed_models import KINDS, kind_of
from bench.robustness.malformed_trial import Case, Outcome, attempt

_SLOW_START = 30
"""Extra seconds for a process's first file, because it loads the libraries."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One file and its outcome.

    Attributes:
        index: pass it to ``--only`` with the same seed to try that file again.
        kind: the kind of damage.
        column: the column of the table.
        said: the message of the command line, or the error.
        seconds: how long it took.
    """

    index: int
    kind: str
    column: str
    said: str
    seconds: float = 0.0


COLUMNS = ("refused", "refused later", "valid", "valid, differs", "WRONG")


def trials(count: int, seed: int, workers: int = 2, first: int = 0) -> Iterator[Trial]:
    """Try files and yield their outcomes in order; the same seed makes the same files."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="malformed-") as place:
        indices = range(first, first + count)
        cases = [Case(seed, index, Path(place) / str(index)) for index in indices]
        with Isolated(attempt, workers, 10 + _SLOW_START) as processes:
            for index, outcome in zip(indices, processes.map(cases), strict=True):
                yield _trial(index, kind_of(index), outcome)


def _trial(index: int, kind: str, outcome: Outcome | Failure) -> Trial:
    if isinstance(outcome, Failure):
        return Trial(index, kind, "WRONG", f"{outcome.what} {outcome.why}")
    if outcome.wrong:
        return Trial(index, kind, "WRONG", outcome.wrong, outcome.seconds)
    column = {0: "valid", 1: "valid, differs", 2: "refused later"}[outcome.code]
    return Trial(
        index, kind, "refused" if outcome.refused else column, outcome.said.strip(), outcome.seconds
    )


def main() -> None:
    """Try files, print the table, exit with 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="try one file and print what is said of it")
    flags = parser.parse_args()
    one = flags.only is not None
    table: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = defaultdict(float)
    tried = trials(
        1 if one else flags.count, flags.seed, 1 if one else flags.workers, flags.only or 0
    )
    for trial in tried:
        table[trial.kind, trial.column] += 1
        slowest[trial.kind] = max(slowest[trial.kind], trial.seconds)
        if one or trial.column == "WRONG":
            print(f"{trial.index} ({trial.kind}): {trial.column}: {trial.said}", flush=True)
    _print(table, slowest)
    if any(column == "WRONG" for _, column in table):
        raise SystemExit(1)


def _print(table: Counter[tuple[str, str]], slowest: Mapping[str, float]) -> None:
    print(f"{'kind':22}" + "".join(f"{column:>16}" for column in COLUMNS) + f"{'slowest':>10}")
    for kind in KINDS:
        print(
            f"{kind:22}"
            + "".join(f"{table[kind, column]:16,}" for column in COLUMNS)
            + f"{slowest[kind]:8.1f} s"
        )
    sums = [sum(n for (_, c), n in table.items() if c == column) for column in COLUMNS]
    print(f"{f'all {sum(sums):,}':22}" + "".join(f"{number:16,}" for number in sums))


if __name__ == "__main__":
    main()
