"""Run the commands of ``docs/case.md`` and make its pictures.

``python -m bench.pictures.case`` prints the output of the commands, and writes
``docs/pictures/case-*``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from math import nan
from pathlib import Path

import matplotlib

from bench.browser import browser, open_report
from bench.machine import describe
from bench.root import ROOT
from mpcompile.numerics.run_log import read_run_log

_PICTURES = ROOT / "docs" / "pictures"
_SOURCE, _STEPS, _SIZE = "centres.py", "150", (1360, 820)
_WAYS = {
    "fp32": ("--precision", "fp32"),
    "none": ("--loss-scale", "none"),
    "dynamic": (),
}
_NAMES = {
    "fp32": "FP32",
    "none": "FP16 without a loss scale",
    "dynamic": "FP16 with the dynamic loss scale",
}


def _mpcompile(folder: Path, *arguments: str) -> None:
    """Run a command like a user, and print the command and its output."""
    print(f"$ mpcompile {' '.join(arguments)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "mpcompile", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    print(f"{done.stdout}{done.stderr}[{done.returncode}]\n", flush=True)


def _draw(folder: Path) -> None:
    """Draw the losses of the runs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the selection of a backend that needs no screen

    figure, axes = pyplot.subplots(figsize=(7.0, 3.2), layout="constrained")
    for way, style in zip(_WAYS, ("-", "-", "--"), strict=True):
        rows = read_run_log(folder / f"{way}.jsonl")
        losses = [nan if row.loss is None else row.loss for row in rows]
        axes.plot([row.step for row in rows], losses, style, label=_NAMES[way])
    axes.set(xlabel="step", ylabel="loss", title="docs/examples/centres.py")
    axes.legend()
    figure.savefig(_PICTURES / "case-losses.svg")


def main() -> None:
    """Run the commands and make the pictures."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    _PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, browser() as started:
        folder = Path(name)
        (folder / _SOURCE).write_text((ROOT / "docs" / "examples" / _SOURCE).read_text())
        for way, flags in _WAYS.items():
            _mpcompile(folder, "run", _SOURCE, "--steps", _STEPS, *flags, "--log", f"{way}.jsonl")
        _draw(folder)
        none = ("--loss-scale", "none")
        _mpcompile(folder, "check", _SOURCE, *none, "--json", "check.json")
        _mpcompile(folder, "calibrate", _SOURCE)
        figure = str(_PICTURES / "case-gradients.svg")
        ranges = ("--ranges", "centres.ranges.json")
        _mpcompile(folder, "gradients", _SOURCE, *ranges, "--figure", figure, "--force")
        measured = (*ranges, "--check", "check.json", "--log", "none.jsonl")
        _mpcompile(folder, "report", _SOURCE, *none, *measured)
        first = json.loads((folder / "check.json").read_text())["first"]
        page = open_report(started, folder / "centres.report.html", size=_SIZE)
        page.fill("#search", first)
        page.keyboard.press("Enter")
        page.fill("#search", "")
        page.wait_for_timeout(500)  # until the picture is complete; nothing is measured here
        page.screenshot(path=_PICTURES / "case-report.png")
        _mpcompile(folder, "check", _SOURCE)
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
