"""Start a program on several processes, as torchrun does."""

from __future__ import annotations

import os
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
    """Wait for a process that must succeed; return what it has printed."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-6000:]
    return out


def alone(rank: int, ranks: int, port: int, *words: str | Path) -> subprocess.Popen[str]:
    """Start one process of several without anybody who looks after them."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**_ENVIRONMENT, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
