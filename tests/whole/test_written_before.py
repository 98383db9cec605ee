"""Files that an earlier build wrote, when all modules were in one folder, load unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from root import ROOT
from safetensors.torch import load_file

import mpcompile
from mpcompile import Plan, Ranges, TrainStep
from mpcompile.cli import exit_code
from mpcompile.program.workload import Workload, load
from mpcompile.train.data_position import Batches

FILES = ROOT / "tests/written_before"
PLAN = FILES / "artifacts/plan.json"
RANGES = FILES / "ranges.json"
RUN = FILES / "run"


def compiled(workload: Workload, **options: Any) -> TrainStep:
    assert workload.loss is not None
    assert workload.optimizer is not None
    return mpcompile.compile(
        workload.model, workload.loss, workload.optimizer, workload.batch, **options
    )


def test_a_plan_is_that_of_today_and_decides() -> None:
    plan = Plan.from_json(PLAN.read_text())
    workload = load(str(FILES / "model.py"))
    step = compiled(workload, plan=plan)
    stored = {row.op: row.stores for row in plan.decisions}
    assert {row.op: row.stores for row in step.plan.decisions} == stored
    assert (step.plan.casts, step.plan.storage) == (plan.casts, plan.storage)
    own = compiled(load(str(FILES / "model.py"))).plan
    said = [[(row.op, row.stores, row.reason) for row in each.decisions] for each in (own, plan)]
    assert said[0] == said[1]


def test_ranges_load_and_decide() -> None:
    ranges = Ranges.from_json(RANGES.read_text())
    step = compiled(load(str(FILES / "model.py")), ranges=ranges)
    assert step.plan.decisions


def test_a_checkpoint_loads_to_the_last_bit_and_training_goes_on() -> None:
    workload = load(str(FILES / "model.py"))
    assert workload.data is not None
    step = compiled(workload)
    step.load(RUN, data=Batches(workload, torch.device("cpu")))
    held = load_file(RUN / "step-00000006/state.safetensors")
    for name, value in workload.model.state_dict().items():
        assert torch.equal(value, held[f"model.{name}"]), name
    assert step.taken == 6
    for batch in workload.data:
        step(*batch)
    assert step.taken + step.skipped == 10


@pytest.mark.parametrize("given", [("--plan", PLAN), ("--ranges", RANGES)])
def test_the_command_line_takes_them(
    given: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flag, file = given
    assert exit_code([str(FILES / "model.py"), flag, str(file), "-o", "made"]) == 0
    stored = [
        {row["op"]: row["stores"] for row in json.loads(path.read_text())["decisions"]}
        for path in (PLAN, tmp_path / "made/plan.json")
    ]
    assert stored[0] == stored[1]


def test_an_artifact_folder_is_inspected_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(FILES)
    assert exit_code(["inspect", "artifacts", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert exit_code(["diff", "artifacts/plan.json", "artifacts/plan.json"]) == 0


def test_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "run/step-00000006"
    copy.mkdir(parents=True)
    for file in (RUN / "step-00000006").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    words = ["run", str(FILES / "model.py"), "--steps", "8", "--out", "run", "--resume"]
    assert exit_code([*words, "--checkpoint-every", "8"]) == 0
    assert (tmp_path / "run/step-00000008/manifest.json").is_file()
