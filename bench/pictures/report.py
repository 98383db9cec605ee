"""Write the pictures of ``docs/report.md``: a report of ``models/gpt.py`` with ranges, in Chromium.

``python -m bench.pictures.report`` writes ``docs/pictures/report-*.png``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.browser import browser, open_report
from bench.root import ROOT

_FOLDER = ROOT / "docs" / "pictures"
_SOURCE, _SIZE = "models/gpt.py", (1360, 820)


def _mpcompile(*arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SIZE": "small"}
    command = [sys.executable, "-m", "mpcompile", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def main() -> None:
    """Write the pictures."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    _FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        ranges, report = f"{folder}/gpt.ranges.json", Path(folder) / "gpt.report.html"
        _mpcompile("calibrate", _SOURCE, "-o", ranges)
        _mpcompile("report", _SOURCE, "--ranges", ranges, "-o", str(report))
        page = open_report(started, report, size=_SIZE)
        page.fill("#search", "cast forward attention.qkv")
        page.keyboard.press("Enter")
        page.fill("#search", "")
        page.wait_for_timeout(500)  # until the picture is complete; nothing is measured here
        page.screenshot(path=_FOLDER / "report-graph.png")
        page.click("#tab-plots")
        page.evaluate("document.querySelector('#plots .card.wide + .card').scrollIntoView()")
        page.wait_for_timeout(500)
        page.screenshot(path=_FOLDER / "report-plots.png")
    for file in sorted(_FOLDER.glob("report-*.png")):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
