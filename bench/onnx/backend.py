"""Convert each test model of the onnx package to FP16 with our converter and our peers.

``python -m bench.onnx.backend [--tools ours ...] [--only PATTERN] [--count N --seed N]
[--weak-points] [--reference] [--json FILE]``

Each tool gets each model that holds FP32 numbers, keeps its input and output types, and is judged
by the same rules (`bench/onnx/verdict.py`): the result must be valid, load in ONNX Runtime on a
CPU, and compute the case's outputs within an FP16 tolerance. A call that crashes or hangs affects
no other (`bench/isolated.py`). ONNX Runtime computes much of FP16 in FP32 on a CPU; ``--reference``
uses onnx's implementation in numpy instead, which overflows where a GPU does. ``--weak-points``
runs small models on which converters are known to break (`bench/onnx/weak_points.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.isolated import Failure, Isolated
from bench.machine import describe as describe_machine
from bench.onnx import cases as onnx_cases
from bench.onnx import weak_points as onnx_weak_points
from bench.onnx.tools import IN_BF16, TOOLS
from bench.onnx.verdict import GOOD, Baseline, Outcome, Runner, Verdict, baseline_of, judge

FOR_FP16 = tuple(name for name in TOOLS if name not in IN_BF16)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime-gpu", "onnxconverter-common")
TOO_SLOW = "light/"
"""Networks that are not run by onnx's reference implementation, which needs minutes."""


_NAMED = re.compile(r"'[^']*'|\([^()]*:[^()]*\)|[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Task:
    """A model for a tool.

    Attributes:
        case: its name.
        tool: a key of `TOOLS`; "" requests the baseline.
        baseline: the facts about the model.
        reference: run it by onnx's reference implementation alone.
    """

    case: str
    tool: str = ""
    baseline: Baseline | None = None
    reference: bool = False


def names() -> list[str]:
    """Return the names of the cases that hold FP32 numbers."""
    return [n for n in onnx_cases.names() if onnx_cases.holds_full(onnx_cases.case_of(n).model)]


def work(task: Task) -> Baseline | Verdict:
    """Do a task, in a process of its own."""
    weak = task.case.startswith(onnx_weak_points.PREFIX)
    case = (onnx_weak_points if weak else onnx_cases).case_of(task.case)
    if task.baseline is None:
        slow = task.case.startswith(TOO_SLOW)
        runners = [] if task.reference else [Runner.RUNTIME]
        return baseline_of(case.model, case.sets, [*runners, *([] if slow else [Runner.REFERENCE])])
    try:
        made = TOOLS[task.tool](case.model)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return Verdict(Outcome.RAISED, f"{type(error).__name__}: {said[0][:300]}")
    return judge(case.model, made, case.sets, task.baseline, task.tool in IN_BF16)


def campaign(
    cases: Iterable[str], tools: Iterable[str], workers: int = 2, by_reference: bool = False
) -> tuple[dict[str, Baseline], dict[str, dict[str, Verdict]]]:
    """Give every case to every tool; return a baseline per case, and verdicts by tool and case.

    The baseline is that of FP16 if a tool makes FP16.

    Args:
        cases: names of cases.
        tools: keys of `TOOLS`.
        workers: number of processes.
        by_reference: run all models by onnx's reference implementation.
    """
    cases, verdicts = list(cases), {}
    by_bf16: dict[bool, dict[str, Baseline]] = {}
    with Isolated(work, workers) as processes:
        for tool in tools:
            bf16 = tool in IN_BF16
            asked = [
                Task(case, reference=bf16 or by_reference or _emulated(case)) for case in cases
            ]
            if bf16 not in by_bf16:
                found = zip(cases, processes.map(asked), strict=True)
                by_bf16[bf16] = {case: _baseline(each) for case, each in found}
            tasks = [replace(t, tool=tool, baseline=by_bf16[bf16][t.case]) for t in asked]
            found = zip(cases, processes.map(tasks), strict=True)
            verdicts[tool] = {case: _verdict(each) for case, each in found}
    return by_bf16[min(by_bf16)], verdicts


def _baseline(found: Baseline | Verdict | Failure) -> Baseline:
    return found if isinstance(found, Baseline) else Baseline(True, True, Runner.NONE, str(found))


def _emulated(case: str) -> bool:
    point = onnx_weak_points.POINTS.get(case.removeprefix(onnx_weak_points.PREFIX))
    return point is not None and point.emulated


def _verdict(found: Baseline | Verdict | Failure) -> Verdict:
    if isinstance(found, Verdict):
        return found
    assert isinstance(found, Failure)
    return Verdict(Outcome.RAISED, f"{found.what} {found.why}".strip())


def table_of(verdicts: dict[str, dict[str, Verdict]]) -> Table:
    """Return one row per tool: the number of models with each outcome."""
    table = Table(title="Models of the onnx package made 16 bits", title_justify="left")
    table.add_column("tool", no_wrap=True)
    for outcome in Outcome:
        table.add_column(outcome.value, justify="right")
    table.add_column("of", justify="right")
    for tool, found in verdicts.items():
        counts = Counter(verdict.outcome for verdict in found.values())
        table.add_row(tool, *(str(counts[o]) for o in Outcome), str(len(found)))
    return table


def side_by_side(verdicts: dict[str, dict[str, Verdict]]) -> Table:
    """Return one row per model and one column per tool."""
    table = Table(title="Where converters break", title_justify="left")
    for column in ("model", *verdicts):
        table.add_column(column)
    for case in next(iter(verdicts.values())):
        table.add_row(case, *(found[case].outcome.value for found in verdicts.values()))
    return table


def reasons(found: dict[str, Verdict], most: int = 8) -> list[str]:
    """Return the most frequent errors with their counts, without names and numbers."""
    alike = Counter(
        f"{verdict.outcome.value}: {_NAMED.sub('…', verdict.why)[:160]}"
        for verdict in found.values()
        if verdict.outcome not in GOOD
    )
    return [f"{count} x {why}" for why, count in alike.most_common(most)]


def versions() -> dict[str, str]:
    """Return the versions of the compared packages."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(FOR_FP16))
    parser.add_argument("--weak-points", action="store_true", help="instead of the package's cases")
    parser.add_argument(
        "--reference", action="store_true", help="run all by onnx's own code, which has real FP16"
    )
    parser.add_argument("--only", default="*", help="names of cases, with wildcards")
    parser.add_argument("--count", type=int, help="so many of them")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    parser.add_argument("--json", type=Path, help="where to write every verdict")
    options = parser.parse_args()
    given = onnx_weak_points.names() if options.weak_points else names()
    cases = [name for name in given if fnmatchcase(name, options.only)]
    if options.count:
        cases = sorted(random.Random(options.seed).sample(cases, min(options.count, len(cases))))
    baselines, verdicts = campaign(cases, options.tools, by_reference=options.reference)
    machine = describe_machine("cpu") | versions()
    console = Console(width=max(120, Console().width))
    if options.weak_points:
        console.print(side_by_side(verdicts))
    console.print(table_of(verdicts))
    for tool, found in verdicts.items():
        bad = {case: v for case, v in found.items() if v.outcome not in GOOD}
        if tool.startswith("ours"):
            for case, verdict in bad.items():
                print(f"{tool}: {case}: {verdict.outcome.value}: {verdict.why}")
        else:
            print(f"{tool}:", *reasons(found), sep="\n  ")
    for runner in Runner:
        count = sum(baseline.runner is runner for baseline in baselines.values())
        print(f"{count} of {len(cases)} are run by {runner.value}")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json:
        document = {
            "machine": machine,
            "run by": {case: [b.runner.value, b.why] for case, b in baselines.items()},
            "verdicts": {
                tool: {case: [v.outcome.value, v.why] for case, v in found.items()}
                for tool, found in verdicts.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
