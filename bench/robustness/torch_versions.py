"""Run the tests on one version of torch, and write their row of ``docs/versions.md``.

``python -m bench.robustness.torch_versions [--page docs/versions.md] [arguments of pytest]``

`make test-torch` runs it in an environment of that version. It prints the row. Without arguments
for pytest, all tests run; then it also writes the row into the page and replaces the old row of
this version.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.machine import describe
from bench.root import ROOT

PAGE = ROOT / "docs/versions.md"
HEAD = "| torch | passed | failed | skipped | minutes | Python | date | commit |"
RULE = "|---|---|---|---|---|---|---|---|"
ALL = ("-n", "2", "--dist", "worksteal")


@dataclass
class Counts:
    """A plugin of pytest that counts how its tests ended.

    Attributes:
        passed: passed tests.
        failed: failed tests, with those that failed in their fixtures.
        skipped: skipped tests.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Read the counts that pytest prints next."""
        stats = terminalreporter.stats
        self.passed = len(stats.get("passed", ()))
        self.failed = len(stats.get("failed", ())) + len(stats.get("error", ()))
        self.skipped = len(stats.get("skipped", ()))


def row_of(counts: Counts, seconds: float, facts: Mapping[str, str | int]) -> str:
    """Return a row of the table.

    Args:
        counts: the counts of one run.
        seconds: the time of the run.
        facts: the machine, from `machine.describe`.
    """
    cells = (
        facts["torch"],
        f"{counts.passed:,}",
        f"{counts.failed:,}",
        f"{counts.skipped:,}",
        f"{seconds / 60:.0f}",
        facts["python"],
        str(facts["date"])[:10],
        facts["commit"],
    )
    return f"| {' | '.join(map(str, cells))} |"


def with_row(page: str, row: str) -> str:
    """Return the page with the row of a version replaced, oldest version first."""
    before, mark, after = page.partition(f"{HEAD}\n{RULE}\n")
    if not mark:
        raise SystemExit(f"the page has no table with the head {HEAD}")
    lines = after.splitlines(keepends=True)
    end = next((k for k, line in enumerate(lines) if not line.startswith("|")), len(lines))
    rows = {_version(line): line for line in lines[:end]} | {_version(row): f"{row}\n"}
    return "".join([before, mark, *(rows[name] for name in sorted(rows)), *lines[end:]])


def _version(row: str) -> tuple[int, ...]:
    """Return the version of a row without its build: the numbers of ``2.13.0+cpu``."""
    name = row.split("|")[1].strip().partition("+")[0]
    return tuple(map(int, re.findall(r"\d+", name)))


def main(arguments: Sequence[str]) -> int:
    """Run the tests, print the row, write it if all tests ran; return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--page", type=Path, default=PAGE)
    options, given = parser.parse_known_args(arguments)
    counts = Counts()
    begin = time.monotonic()
    code = pytest.main([*ALL, *given], plugins=[counts])
    row = row_of(counts, time.monotonic() - begin, describe("cpu"))
    print(f"{HEAD}\n{RULE}\n{row}")
    if not given and code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        options.page.write_text(with_row(options.page.read_text(), row))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
