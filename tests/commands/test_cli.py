"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpcompile.cli import exit_code
from mpcompile.plan.plan import Plan

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def workload():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    batches = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(3)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Workload(model, batches[0], loss, optimizer, batches)
"""
FILES = {"plan.json", "view.json", "view.before.json", "summary.json", "forward.before.txt",
         "forward.after.txt", "decisions.txt", "step.txt"}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from mpcompile.cli import exit_code\n"
        "assert exit_code(['--help']) == 0\n"
        "assert exit_code(['run', '--help']) == 0\n"
        "assert exit_code(['inspect', '--help']) == 0\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpcompile", "nowhere.py"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mpcompile: nowhere.py: there is no such file")
    assert done.stdout == ""


def test_a_bare_file_is_transformed_and_its_artifacts_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    out = capsys.readouterr().out
    for word in ("forward", "backward", "update", "casts", "masters", "peak memory"):
        assert word in out
    assert {path.name for path in (folder / "model.mp").iterdir()} == FILES
    plan = Plan.from_json((folder / "model.mp" / "plan.json").read_text())
    assert plan.decision("linear").stores.value == "float16"
    assert Plan.from_json(plan.to_json()) == plan
    assert "model.py:5" in (folder / "model.mp" / "decisions.txt").read_text()


def test_nothing_is_overwritten_without_force(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    before = (folder / "model.mp" / "plan.json").read_text()
    assert exit_code(["model.py", "--precision", "bf16"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "model.mp" / "plan.json").read_text() == before
    assert exit_code(["model.py", "--precision", "bf16", "--force"]) == 0
    assert (folder / "model.mp" / "plan.json").read_text() != before
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "model.mp",
        "model.py",
    ]


def test_force_does_not_replace_a_folder_of_something_else(folder: Path) -> None:
    (folder / "precious").mkdir()
    (folder / "precious" / "data.txt").write_text("keep")
    assert exit_code(["model.py", "-o", "precious", "--force"]) == 2
    assert (folder / "precious" / "data.txt").read_text() == "keep"


def test_artifacts_appear_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_text

    def full_disk(path: Path, text: str, **options: str) -> int:
        if path.name == "step.txt":
            raise OSError("no space left on device")
        return written(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    assert exit_code(["model.py"]) == 70
    assert [path.name for path in folder.iterdir() if ".mp" in path.name] == []


def test_json_on_stdout_is_one_document_and_people_read_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py", "--json", "-"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["ops"]["forward"]["f16"] > 0
    assert document["casts_hoisted"] == 4
    assert document["memory"]["mixed"]["saved"] < document["memory"]["fp32"]["saved"]
    assert "wrote model.mp" in captured.err


def test_run_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["run", "model.py", "--steps", "40", "--json", "-"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    losses = document["losses"]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 2
    assert document["taken"] + document["skipped"] == 40
    assert "loss scale" in captured.err


def test_run_in_fp32_and_bf16_and_with_a_static_scale(folder: Path) -> None:
    for options in (
        ["--precision", "fp32"],
        ["--precision", "bf16"],
        ["--loss-scale", "1024"],
        ["--full", "linear", "--full", "layer_norm"],
    ):
        assert exit_code(["run", "model.py", "--steps", "2", *options]) == 0


def test_a_policy_pattern_keeps_ops_in_fp32(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py", "--full", "matmul", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"]["forward"]["f16"] == 0


def test_bad_numbers_are_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["run", "model.py", "--steps", "0"]) == 2
    assert exit_code(["run", "model.py", "--loss-scale", "big"]) == 2
    assert exit_code(["run", "model.py", "--loss-scale", "-3"]) == 2
    assert exit_code(["run", "model.py", "--precision", "fp8"]) == 2
    assert capsys.readouterr().err.count("mpcompile: ") == 4


def test_a_workload_without_loss_has_its_forward_graph_transformed(folder: Path) -> None:
    (folder / "forward.py").write_text(
        "import torch\nmodel = torch.nn.Linear(4, 4)\nbatch = (torch.randn(2, 4),)\n"
    )
    assert exit_code(["forward.py"]) == 0
    assert {path.name for path in (folder / "forward.mp").iterdir()} == FILES - {"step.txt"}
    assert exit_code(["run", "forward.py"]) == 2


def test_a_module_name_takes_the_place_of_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "some_package.py").write_text(MODEL.replace("def workload", "def small"))
    monkeypatch.syspath_prepend(str(folder))
    assert exit_code(["some_package:small"]) == 0
    assert (folder / "some_package.mp" / "plan.json").is_file()
    assert exit_code(["some_package:missing"]) == 2


def forward_ops(captured: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(captured)["ops"]["forward"]
    return counts


def test_levels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = []
    for level in ("fp32", "tensor-cores-only", "careful", "paper"):
        assert exit_code(["model.py", "--level", level, "-o", level]) == 0
        plan = Plan.from_json((folder / level / "plan.json").read_text())
        narrow.append([d.op for d in plan.decisions if d.stores.value == "float16"])
    assert narrow == [
        [],
        ["linear", "linear_1"],
        ["linear", "relu", "linear_1"],
        ["linear", "layer_norm", "relu", "linear_1"],
    ]
    assert exit_code(["model.py", "--level", "carefull"]) == 2
    assert "carefull" in capsys.readouterr().err


def test_settings_of_the_project_and_flags_over_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pyproject.toml").write_text('[tool.mpcompile]\nfull = ["matmul"]\n')
    assert exit_code(["model.py", "--json", "-", "--force"]) == 0
    assert forward_ops(capsys.readouterr().out)["f16"] == 0
    assert exit_code(["model.py", "--half", "matmul", "--json", "-", "--force"]) == 0
    assert forward_ops(capsys.readouterr().out)["f16"] > 0
    assert exit_code(["run", "model.py", "--steps", "1", "--precision", "bf16", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"
    (folder / "pyproject.toml").write_text("[tool.mpcompile]\nhalve = []\n")
    assert exit_code(["model.py", "--force"]) == 2
    assert capsys.readouterr().err == (
        "mpcompile: pyproject.toml: [tool.mpcompile]: there is no field halve (did you mean "
        "'half'?); "
        "the settings are level, precision, full, half, free, precision_budget, loss_scale, "
        "backend, without, lint.\n"
    )


def test_an_override_that_matches_nothing_is_one_line_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py", "--full", "linaer", "--json", "-"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == [
        "mpcompile: warning: full='linaer' matches no op; the nearest names are linear, linear_1."
    ]


def test_contradictory_overrides_are_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py", "--full", "relu", "--half", "relu"]) == 2
    assert "full='relu' and half='relu' both name relu" in capsys.readouterr().err


def test_a_plan_is_written_edited_and_applied(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    document = json.loads((folder / "model.mp" / "plan.json").read_text())
    for row in document["decisions"]:
        if row["op"] == "layer_norm":
            row["stores"] = "float32"
    (folder / "mine.json").write_text(json.dumps(document))
    assert exit_code(["model.py", "-o", "again", "--plan", "mine.json"]) == 0
    plan = Plan.from_json((folder / "again" / "plan.json").read_text())
    assert plan.decision("layer_norm").stores.value == "float32"
    assert exit_code(["run", "model.py", "--steps", "2", "--plan", "mine.json"]) == 0
    capsys.readouterr()

    assert exit_code(["diff", "model.mp/plan.json", "model.mp/plan.json"]) == 0
    assert capsys.readouterr().out == "the plans are the same\n"
    assert exit_code(["diff", "model.mp/plan.json", "again/plan.json", "--json", "-"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["decisions"][0]["op"] == "layer_norm"
    assert captured.err.startswith("layer_norm (1): f16 -> f32, because set in")


def test_a_plan_of_another_program_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    (folder / "model.py").write_text(MODEL.replace("nn.ReLU", "nn.GELU"))
    assert exit_code(["model.py", "-o", "new", "--plan", "model.mp/plan.json"]) == 2
    assert (
        "the plan belongs to another graph: only in the plan: relu (relu); only in this program: "
        in (capsys.readouterr().err)
    )
    assert not (folder / "new").exists()
    assert exit_code(["model.py", "-o", "new", "--plan", "model.py"]) == 2
    assert "model.py: this is not a plan: this is not JSON" in capsys.readouterr().err
    assert exit_code(["diff", "model.mp/plan.json", "nowhere.json"]) == 2
    assert "nowhere.json: there is no such file" in capsys.readouterr().err


def test_names_in_a_plan_do_not_write_to_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    text = (folder / "model.mp" / "plan.json").read_text()
    (folder / "bad.json").write_text(text.replace('"reason": "a loss', '"reason": "\\u001b[2J'))
    document = json.loads((folder / "bad.json").read_text())
    document["decisions"][0]["stores"] = "\x1b[31m"
    (folder / "worse.json").write_text(json.dumps(document))
    document["decisions"][0]["stores"] = "float32"
    document["decisions"][0]["reason"] = "\x1b[31mred"
    (folder / "bad.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert exit_code(["diff", "model.mp/plan.json", "bad.json"]) == 1
    assert exit_code(["diff", "model.mp/plan.json", "worse.json"]) == 2
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "because \\x1b[31mred" in captured.out


def test_schemas_are_printed_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["schema", "settings"]) == 0
    assert "level" in json.loads(capsys.readouterr().out)["properties"]
    assert exit_code(["schema", "plan"]) == 0
    assert "fingerprint" in json.loads(capsys.readouterr().out)["properties"]
    assert exit_code(["schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"settings", "plan"}
    assert exit_code(["schema", "report"]) == 2
    code = (
        "import sys\n"
        "from mpcompile.cli import exit_code\n"
        "assert exit_code(['schema']) == 0\n"
        "assert exit_code(['diff', 'a.json', 'b.json']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_ranges_are_measured_written_and_followed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tall = MODEL.replace("    batches =", "    model[0].weight.data.mul_(1e6)\n    batches =")
    (folder / "model.py").write_text(tall)
    assert exit_code(["calibrate", "model.py", "--json", "-"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["batches"] == 3
    assert document["largest"] > 65504
    assert "nearest to overflow in FP16" in captured.err
    assert "linear" in captured.err
    assert exit_code(["model.py", "--ranges", "model.ranges.json"]) == 0
    assert "linear reached" in (folder / "model.mp" / "decisions.txt").read_text()
    assert exit_code(["run", "model.py", "--steps", "2", "--ranges", "model.ranges.json"]) == 0
    assert "0 skipped" in capsys.readouterr().out
    against = ["model.py", "--ranges", "model.ranges.json", "--half", "module:0", "--force"]
    assert exit_code(against) == 1
    assert "on the first batch the loss has numbers that are not finite" in capsys.readouterr().err
    assert exit_code([*against, "--no-check"]) == 0
    warned = capsys.readouterr().err.splitlines()
    assert [line for line in warned if "linear is in FP16 as you asked, but linear reached" in line]
    assert all(line.startswith("mpcompile: warning: ") for line in warned)


def test_a_ranges_file_is_not_replaced_without_force(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["calibrate", "model.py", "--batches", "1"]) == 0
    before = (folder / "model.ranges.json").read_text()
    assert exit_code(["calibrate", "model.py"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (folder / "model.ranges.json").read_text() == before
    assert exit_code(["calibrate", "model.py", "--force"]) == 0
    assert (folder / "model.ranges.json").read_text() != before
    assert {path.name for path in folder.iterdir()} == {"model.py", "model.ranges.json"}


@pytest.mark.parametrize(
    "flags",
    [
        ["model.py", "--margin", "3"],
        ["model.py", "--release"],
        ["model.py", "--precision-budget", "0.1"],
        ["model.py", "--precision-budget", "0"],
        ["model.py", "--ranges", "nowhere.json"],
        ["model.py", "--ranges", "model.py"],
        ["calibrate", "model.py", "--batches", "0"],
        ["calibrate", "model.py", "-o", "."],
        ["calibrate", "model.py", "-o", "nowhere/r.json"],
    ],
)
def test_wrong_ranges_are_bad_input(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(flags) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} == {"model.py"}


def test_a_constant_that_does_not_fit_is_printed_with_its_place_and_fix(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = MODEL.replace("cross_entropy(model(x), y)", "cross_entropy(model(x) / 1e-8, y)")
    (folder / "model.py").write_text(masked)
    assert exit_code(["model.py", "--json", "summary.json"]) == 0
    out = capsys.readouterr().out
    assert "does not fit FP16:" in out
    assert "model.py:5  div: the constant 1e-08 becomes 0 in FP16" in out
    assert len(json.loads((folder / "summary.json").read_text())["unfit"]) == 1
