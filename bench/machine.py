"""The machine of a measurement: ``python -m bench.machine [cpu|cuda]`` prints it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def describe(device: str) -> dict[str, str | int]:
    """Return device name, driver, versions and date.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """
    facts: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "describe", "--always", "--dirty"),
    }
    if device == "cuda":
        cudnn: Any = torch.backends.cudnn
        facts |= {
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": str(torch.version.cuda),
            "cudnn": str(cudnn.version()),
            "memory": torch.cuda.get_device_properties(0).total_memory,
        }
    return facts


def _processor() -> str:
    """Return the processor's name, because ``platform.processor()`` is empty on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    """Return a program's output, or ``unknown`` if the program is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Print what a measurement here runs on, as JSON.")
    parser.add_argument("device", nargs="?", default=default, choices=("cpu", "cuda"))
    print(json.dumps(describe(parser.parse_args().device), indent=1))
