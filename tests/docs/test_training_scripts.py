"""docs/training-scripts.md: both scripts of a pair run, and the page shows how they differ."""

from __future__ import annotations

import difflib
import importlib.util
import sys

import pytest
import torch
from root import ROOT

DOCS = ROOT / "docs"
KINDS = {
    "plain": "torch",
    "gan": "torch",
    "lightning": "pytorch_lightning",
    "huggingface": "transformers",
    "penalty": "torch",
    "physics": "torch",
    "policy": "torch",
    "speech": "torch",
    "detector": "torch",
}
LINES = {"gan": 15, "penalty": 15}  # two steps
NEAR = dict.fromkeys(("penalty", "physics", "policy", "speech", "detector"), 0.03)
"""How far apart measures may be that are small at the end of training."""


def run(name: str) -> float:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dynamo imports the module of a function again
    spec.loader.exec_module(module)
    return float(module.main())


def difference(kind: str) -> str:
    """Return what ``diff -U1`` prints below the line ``+++``."""
    one, other = (
        (DOCS / "examples" / f"{side}_{kind}.py").read_text().splitlines()
        for side in ("before", "after")
    )
    return "\n".join(list(difflib.unified_diff(one, other, n=1, lineterm=""))[2:])


@pytest.mark.parametrize(("kind", "needs"), KINDS.items(), ids=KINDS)
def test_both_scripts_run_and_learn_the_same(
    kind: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(needs)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.compiler.reset()
    before, after = run(f"before_{kind}"), run(f"after_{kind}")
    assert before < 0.65
    assert after == pytest.approx(before, rel=0.05, abs=NEAR.get(kind, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_shows_how_the_files_differ(kind: str) -> None:
    page = (DOCS / "training-scripts.md").read_text()
    assert f"```diff\n{difference(kind)}\n```" in page


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_is_a_few_lines(kind: str) -> None:
    changed = [line for line in difference(kind).splitlines() if line[0] in "+-"]
    assert len(changed) <= LINES.get(kind, 12)
