"""Measure the bytes of training state on each of several processes, whole and in slices.

    python -m bench.memory.bytes_per_process [--ranks 2 4] [--model gpt]

Counts masters, optimizer state and working copies in memory after three steps, with the model's
own optimizer and FP16. The processes run on this machine, on gloo. The bound is the minimum of
ZeRO stage 1: the working copies, and all other state divided by the number of processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed

import mpcompile
from bench.machine import describe
from bench.root import ROOT
from mpcompile import TrainStep
from mpcompile.program.workload import epochs, load

KINDS = ("masters", "optimizer", "working copies")


def state_bytes(step: TrainStep) -> dict[str, int]:
    """Return the bytes of each kind of state; shared memory counts once."""
    held: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
    for name, value in step._state.items():
        arena, _, key = name.partition(".")
        if arena.startswith("arena") and value.numel() > 1:
            named = {"master": "masters", "whole": "masters", "working": "working copies"}
            memory = value.untyped_storage()
            held[named.get(key, "optimizer")][memory.data_ptr()] = memory.nbytes()
    return {kind: sum(memories.values()) for kind, memories in held.items()}


def on_each(model: str, results: Path) -> None:
    """Train three steps both ways on one of the processes, and write the bytes that it holds."""
    distributed.init_process_group("gloo")
    for way, shard in (("whole", False), ("slices", True)):
        workload = load(str(ROOT / "models" / f"{model}.py"))
        assert workload.loss is not None
        assert workload.optimizer is not None
        parallel = mpcompile.data_parallel(shard=shard)
        step = mpcompile.compile(
            workload.model, workload.loss, workload.optimizer, workload.batch, parallel=parallel
        )
        for _, batch in zip(range(3), epochs(workload), strict=False):
            step(*batch)
        file = results / f"{way}{distributed.get_rank()}.json"
        file.write_text(json.dumps(state_bytes(step)))
    distributed.destroy_process_group()


def main() -> None:
    """Start the processes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--model", default="gpt")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.results:
        torch.set_num_threads(1)
        on_each(given.model, given.results)
        return
    console = Console()
    table = Table("processes", "way", *KINDS, "all", "of whole", "bound")
    for ranks in given.ranks:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(ranks),
            ]
            own = ["-m", "bench.memory.bytes_per_process"]
            own += ["--model", given.model, "--results", folder]
            subprocess.run([sys.executable, *command, *own], check=True, capture_output=True)
            whole = 0
            for way in ("whole", "slices"):
                files = sorted(Path(folder).glob(f"{way}*.json"))
                most = {k: max(json.loads(f.read_text())[k] for f in files) for k in KINDS}
                total = sum(most.values())
                whole = whole or total
                copies = most["working copies"]
                bound = copies + (whole - copies) / (ranks if way == "slices" else 1)
                numbers = [f"{value:,}" for value in (*most.values(), total)]
                table.add_row(str(ranks), way, *numbers, f"{total / whole:.3f}",
                              f"{bound / whole:.3f}")  # fmt: skip
    console.print(describe("cpu"))
    console.print(table)


if __name__ == "__main__":
    main()
