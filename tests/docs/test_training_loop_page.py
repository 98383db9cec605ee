"""The page about the training loop: its blocks run, one after another."""

from __future__ import annotations

import re
from typing import Any

import pytest
from root import ROOT

PAGE = ROOT / "docs/training-loop.md"


def test_every_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 12
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    taken, skipped, applied = capsys.readouterr().out.split("\n")[0].split()
    assert int(taken) + int(skipped) == 6
    assert applied in ("True", "False")
    assert names["saved"]["last_epoch"] >= 3
    assert names["step"].taken + names["step"].skipped == 1
    assert (names["mixed"] - names["exact"]).abs().max() < 0.02
