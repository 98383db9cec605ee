"""``mpcompile reduce`` as a user types it, and its script as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from planted.failing_parts import PLANTED
from root import ROOT
from safetensors.torch import load_file

from mpcompile.cli import exit_code

HOSTILE = r"\x1b[31m[bold red]\nimport os\r# coding: utf-7 \u202e"
QUOTES = '"""\'\\'
HOSTILE_MODEL = f"""\
import torch
from planted.failing_parts import Unit, square
from torch import nn
from mpcompile import Workload


def workload():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("{HOSTILE}", nn.Linear(16, 32, bias=False))
    model.add_module("relu", nn.ReLU())
    model.add_module({QUOTES!r}, Unit())
    model.add_module("leave", nn.Linear(32, 4))
    x = torch.randn(8, 16)
    x[3] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Workload(model, (x, torch.randn(8, 4)), square, optimizer)
"""


# Neither one number for all nor random numbers have its signs.
MATCHED = """\
import torch
from planted.failing_parts import square, trained


def workload():
    signs = torch.tensor([1.0, -1.0]).repeat(64).reshape(1, 1, 128)
    model = torch.nn.Conv1d(1, 1, 128, bias=False)
    with torch.no_grad():
        model.weight.copy_(4 * signs)
    return trained(model, 200 * signs, torch.zeros(1, 1, 1))
"""


BRANCH = """\
import torch
from planted.failing_parts import square, trained


class Branch(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x * x, lambda x: x - x * x, (x,))


def workload():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Branch())
    return trained(model, 1000 * torch.randn(4, 8), torch.randn(4, 8))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*PLANTED, "healthy", "own_fault"):
        (tmp_path / f"{name}.py").write_text(
            f"from planted.failing_parts import {name} as workload\n"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


EACH = """\
import contextlib, io, json, runpy, sys

found = []
for script in sys.argv[1:]:
    code, out = 0, io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    found.append((code, out.getvalue()))
print(json.dumps(found))
"""


def run(*scripts: Path) -> list[tuple[int, str]]:
    """Run scripts elsewhere, in a process without our packages on its path."""
    command = [sys.executable, "-I", "-c", EACH, *(str(script.resolve()) for script in scripts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    return [(code or 0, said) for code, said in json.loads(done.stdout)]


@pytest.mark.parametrize("name", PLANTED)
def test_the_script_fails_in_16_bits_and_not_in_32(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = PLANTED[name]
    assert exit_code(["reduce", f"{name}.py", *case.flags]) == 0
    out = capsys.readouterr().out
    assert f"left: {len(case.ops)} of the" in out
    script = folder / f"{name}.reduced.py"
    text = script.read_text()
    assert "mpcompile." not in text
    assert f"# program: {name}.py" in text
    assert "failing_parts.py:" in text
    assert text.count("HALF = torch.float16") == 1
    wide = folder / "wide.py"
    wide.write_text(text.replace("HALF = torch.float16", "HALF = torch.float32"))
    found = [(code, said.splitlines()[-1]) for code, said in run(script, wide)]
    assert found == [(1, "FAILS"), (0, "does not fail")]


def test_what_does_not_fail_is_said_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["reduce", "healthy.py", "--batches", "2", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "nothing fails in 2 batches\n"
    assert exit_code(["reduce", "healthy.py", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"source": "healthy.py", "failure": None}
    assert exit_code(["reduce", "healthy.py", "--node", "addmm"]) == 0
    assert capsys.readouterr().out == "addmm does not fail in 1 batch\n"
    assert not list(folder.glob("*.reduced.*"))


def test_a_program_that_fails_in_fp64_too_is_told_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["reduce", "own_fault.py"]) == 1
    assert "the program is the cause, not its precision" in capsys.readouterr().err
    assert not list(folder.glob("*.reduced.*"))


def test_json_says_what_is_left_and_a_named_node_is_reduced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reduce", "epsilon.py", *PLANTED["epsilon"].flags, "--node", "div", "-o", "x.py"]
    assert exit_code([*command, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["output"], document["data"], document["ops"]) == ("x.py", None, ["add", "div"])
    failure = document["failure"]
    assert (failure["node"], failure["stage"], failure["error"]) == ("div", "forward", None)
    assert failure["nonfinite"] == failure["numbers"] == 1
    assert document["inputs"] == ["relu", "amax"]
    assert exit_code(command) == 2
    assert "x.py already exists" in capsys.readouterr().err
    assert exit_code([*command, "--force"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon.py", "--node", "dvi"],
        ["epsilon.py", "--tolerance", "0"],
        ["epsilon.py", "--batches", "0"],
        ["epsilon.py", "-o", "x.txt"],
        ["epsilon.onnx"],
        ["none.py"],
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["reduce", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bf16_is_rounded_to_bf16(folder: Path) -> None:
    case = PLANTED["saturating"]
    assert exit_code(["reduce", "saturating.py", *case.flags, "--precision", "bf16"]) == 0
    script = folder / "saturating.reduced.py"
    assert "HALF = torch.bfloat16" in script.read_text()
    assert run(script)[0][0] == 1


def test_numbers_that_are_too_many_lie_in_a_file_beside_the_script(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wide.py").write_text(MATCHED)
    assert exit_code(["reduce", "wide.py"]) == 0
    script, data = folder / "wide.reduced.py", folder / "wide.reduced.safetensors"
    assert run(script)[0][0] == 1
    assert sorted(load_file(data)) == ["to_copy_1", "weight_working"]
    assert "wide.reduced.py and wide.reduced.safetensors" in capsys.readouterr().out


def test_hostile_names_stay_in_comments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "o'dd \x1b[31m#name.py"
    (folder / name).write_text(HOSTILE_MODEL)
    assert exit_code(["reduce", name, *PLANTED["epsilon"].flags, "-o", "x.py"]) == 0
    out = capsys.readouterr().out
    text = (folder / "x.py").read_text()
    for shown in (out, text):
        assert all(c.isprintable() or c == "\n" for c in shown)
    assert not any(line.startswith("import os") for line in text.splitlines())
    assert "coding" not in "".join(text.splitlines()[:2])
    assert run(folder / "x.py")[0][0] == 1


def test_control_flow_is_refused_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "branch.py").write_text(BRANCH)
    assert exit_code(["reduce", "branch.py"]) == 3
    assert "cond calls graphs of its own" in capsys.readouterr().err


def test_the_page_shows_what_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/reduce.md").read_text()
    file = tmp_path / "reduced.py"
    command = next(line for line in page.splitlines() if line.startswith("$ mpcompile"))
    arguments = command.removeprefix("$ mpcompile ").replace("reduced.py", str(file)).split()
    assert exit_code(arguments) == 0
    assert capsys.readouterr().out.replace(str(file), "reduced.py") in page
    text = file.read_text().partition("\n\ndef main():")[0].strip()
    # But for the line with the versions.
    for part in (text.partition("# made:")[0], text.partition("# made:")[2].partition("\n")[2]):
        assert part in page
    assert f"$ python reduced.py\n{run(file)[0][1]}" in page
