"""Start a program on several processes, like torchrun."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from root import ROOT

TESTS = ROOT / "tests"
_ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "PYTHONWARNINGS": "ignore",
}


def torchrun(
    ranks: int, *words: str | Path, restarts: int = 0, **told: str
) -> subprocess.Popen[str]:
    """Start ``torchrun`` with a program, its arguments and environment variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), "--max-restarts", str(restarts), "--monitor-interval", "0.1",
         *map(str, words)],
        env={**_ENVIRONMENT, **told}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], seconds: float = 400) -> str:
    """Wait for a process that must succeed; return its output."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-6000:]
    return out


def alone(rank: int, ranks: int, port: int, *words: str | Path) -> subprocess.Popen[str]:
    """Start one process of several, without a parent that supervises them."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**_ENVIRONMENT, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


class Nursery:
    """Runs programs on several processes that are forked, so none of them imports torch again.

    It does not do the work of torchrun itself, such as restarts and passing on signals.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "programs" / "nursery.py")],
            env={**_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, ranks: int, out: Path, *words: str | Path, **told: str) -> str:
        """Run a program that must succeed; return the output of its processes.

        Args:
            ranks: how many processes.
            out: the file for their output; it must not exist yet.
            words: as for `torchrun`.
            told: environment variables.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"ranks": ranks, "words": [*map(str, words)], "told": told, "out": str(out)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answered, _, _ = select.select([self.process.stdout], [], [], 400)
        code = self.process.stdout.readline() if answered else "none in 400 s"
        text = out.read_text() if out.exists() else ""
        assert code == "0\n", f"{code}: {text[-6000:]}"
        return text

    def close(self) -> None:
        """Stop it and the programs that still run."""
        self.process.kill()
        self.process.communicate()
