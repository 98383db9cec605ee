"""Compare our table of ONNX kernels with the ONNX Runtime that is installed.

``python -m bench.onnx.kernels [--registry FILE] [--write FILE] [--table]
[--count N --seed N] [--json FILE]``

It compares twice: with the registry of kernels (`bench/onnx/registry.py`), if the runtime returns
it, and on a CPU by running every op of the onnx package's node cases in FP32, FP16 and BF16 and
reading the result (`bench/onnx/probe.py`). An op that does not run in FP32 either does not count.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.isolated import Failure, Isolated
from bench.machine import describe as describe_machine
from bench.onnx import registry as onnx_registry
from bench.onnx.probe import FORMATS, Answer, Probe, probe, single_ops
from bench.onnx.registry import Cells, Kernel
from mpcompile.onnx_graph.kernels import OnCpu, Provider, formats, on_cpu
from mpcompile.precision import Precision

_PRECISIONS = {"h": Precision.FP16, "b": Precision.BF16, "f": Precision.FP32}
_FITS = {
    OnCpu.RUNS: ("kernel",),
    OnCpu.CASTS: ("cast",),
    OnCpu.EXPANDS: ("kernel", "cast"),
    OnCpu.FAILS: ("fails",),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One op in one format: the answer of the table and of the runtime.

    Attributes:
        case: the model it was tried with.
        op: the op type.
        version: the version of the op.
        precision: the format.
        said: the answer of the table.
        found: ``"kernel"``, ``"cast"``, ``"fails"``, or the way the process ended.
    """

    case: str
    op: str
    version: int
    precision: Precision
    said: OnCpu
    found: str

    @property
    def refutes(self) -> bool:
        """Whether a graph that the table accepts does not load."""
        return not self.agrees and self.said is not OnCpu.FAILS

    @property
    def agrees(self) -> bool:
        """Whether the runtime agrees with the table."""
        return self.found in _FITS[self.said]


def probed(cases: list[str], workers: int = 2) -> list[Compared]:
    """Try each of the cases in every format that ONNX allows and compare; FP32 must load."""
    tasks = [Probe(case, letter) for case in cases for letter in FORMATS]
    with Isolated(probe, workers) as processes:
        answers = dict(zip(tasks, processes.map(tasks), strict=True))
    found = []
    for task in tasks:
        own, full = answers[task], answers[Probe(task.case, "f")]
        if not isinstance(full, Answer) or full.what in ("fails", "invalid"):
            continue
        if own.what == "invalid":
            continue
        precision = _PRECISIONS[task.letter]
        said = on_cpu(full.op, full.version, precision)
        found.append(Compared(task.case, full.op, full.version, precision, said, own.what))
    return found


def differences(kernels: list[Kernel]) -> list[str]:
    """Return one sentence per op and version in which our table differs from a registry."""
    found = []
    for provider in Provider:
        registry = onnx_registry.cells_of(kernels, f"{provider.name}ExecutionProvider")
        for op, cells in registry.items():
            for version, held in cells.items():
                ours = formats(provider, op, version)
                if ours != held.strip("-"):
                    found.append(f"{provider.name} {op} {version}: {ours or '-'}, registry {held}")
    return found


def _registry(file: Path | None) -> list[Kernel] | Failure:
    if file:
        return onnx_registry.kernels_of(json.loads(file.read_text()))
    with Isolated(onnx_registry.registered, workers=1) as process:
        (found,) = process.map([None])
    return found


def _columns(kernels: list[Kernel]) -> dict[str, Cells]:
    return {
        provider.name: onnx_registry.cells_of(kernels, f"{provider.name}ExecutionProvider")
        for provider in Provider
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--registry", type=Path, help="rows read off a runtime elsewhere, as JSON")
    parser.add_argument("--write", type=Path, help="write the registry's rows, for --registry")
    parser.add_argument("--table", action="store_true", help="print the registry as our table")
    parser.add_argument("--count", type=int, help="try so many ops only")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    options = parser.parse_args()
    kernels = _registry(options.registry)
    if isinstance(kernels, Failure):
        print(f"the registry cannot be read here: {kernels.what}, {kernels.why}")
    elif options.table:
        print(onnx_registry.as_table(_columns(kernels)))
        return
    else:
        different = differences(kernels)
        print(
            f"registry: {len(kernels)} kernels, {len(different)} differences", *different, sep="\n"
        )
        if options.write:
            rows = [(k.provider, "", k.op, (k.first, k.last), k.types) for k in kernels]
            options.write.write_text(json.dumps(rows))
    cases = single_ops()
    if options.count:
        cases = sorted(random.Random(options.seed).sample(cases, options.count))
    found = probed(cases)
    Console().print(_table(found))
    for each in found:
        if not each.agrees:
            tried = f"{each.case}: {each.op} {each.version} in {each.precision.short}"
            print(f"{tried}: the table says {each.said.value!r}, found {each.found!r}")
    machine = describe_machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json:
        probes = [asdict(each) | {"agrees": each.agrees} for each in found]
        document = {"machine": machine, "probes": probes}
        options.json.write_text(json.dumps(document, indent=1, default=lambda member: member.value))


def _table(found: list[Compared]) -> Table:
    table = Table(title="Ops given to ONNX Runtime on a CPU", title_justify="left")
    for column in ("format", "the table says", "agree", "differ"):
        table.add_column(column, justify="right" if column in ("agree", "differ") else "left")
    counts = Counter((each.precision, each.said, each.agrees) for each in found)
    for precision in _PRECISIONS.values():
        for said in OnCpu:
            agree, differ = (counts[precision, said, yes] for yes in (True, False))
            if agree or differ:
                table.add_row(precision.short, said.value, str(agree), str(differ))
    return table


if __name__ == "__main__":
    main()
