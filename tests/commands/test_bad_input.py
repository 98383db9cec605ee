"""Each kind of bad input: one sentence, the user's own line, the exit code, no traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpcompile.cli import exit_code

HEAD = """\
import torch
from torch import nn
from mpcompile import Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 8)
        self.two = nn.Linear(8, 2)
    def forward(self, x):
        return self.two(self.one(x))

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def batch():
    return torch.randn(3, 4), torch.randint(0, 2, (3,))
"""

CASES = {
    "no workload": ("x = 1\n", 2, r"model\.py: .*defines neither workload\(\)", ""),
    "raises while loading": (
        "import torch\ndef workload():\n    return 1 / 0\n",
        2,
        r"model\.py:3: .*ZeroDivisionError.*division by zero",
        "",
    ),
    "not Python": ("def workload(:\n", 2, r"model\.py:1: this is not valid Python", ""),
    "returns something else": ("def workload():\n    return 3\n", 2, r"model\.py:1: .*int", ""),
    "wrong batch type": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, [object()], loss, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:20: the batch holds an object of type object",
        "tensors, numbers, strings and None",
    ),
    "vector loss": (
        HEAD + "def bad(model, x, y):\n"
        "    return nn.functional.cross_entropy(model(x), y, reduction='none')\n"
        "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, batch(), bad, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:18: the loss is a float32 tensor of shape \[3\]",
        "mean",
    ),
    "packed sequence": (
        HEAD + "class Packed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layers = nn.GRU(4, 2, num_layers=2, dropout=0.5)\n"
        "    def forward(self, x, lengths):\n"
        "        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)\n"
        "        return self.layers(packed)[1].mean()\n"
        "def workload():\n"
        "    m = Packed()\n"
        "    b = (torch.randn(3, 2, 4), torch.tensor([3, 2]))\n"
        "    o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "    return Workload(m, b, lambda model, *batch: model(*batch), o)\n",
        3,
        r"model\.py:24: a recurrent layer with dropout between its layers reads a packed sequence",
        "dropout=0",
    ),
    "three losses": (
        HEAD + "def bad(model, x, y):\n"
        "    return loss(model, x, y), loss(model, x, y), loss(model, x, y)\n"
        "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, batch(), bad, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:18: the loss returns 3 values",
        "0-d",
    ),
    "shapes refused": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    b = torch.randn(3, 5), torch.randint(0, 2, (3,))\n"
        "    return Workload(m, b, loss, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:11: the program raises RuntimeError on the example batch of shapes \[3, 5\]",
        "",
    ),
    "data-dependent control flow": (
        HEAD + "def branch(model, x, y):\n"
        "    if x.sum() > 0:\n"
        "        x = x * 2\n"
        "    return loss(model, x, y)\n"
        "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, batch(), branch, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        3,
        r"model\.py:19: .*Python control flow depends on the value of a tensor",
        "torch.where",
    ),
    "unreached parameter": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    m.extra = nn.Linear(3, 3)\n"
        "    return Workload(m, batch(), loss, torch.optim.SGD(m.extra.parameters(), lr=0.1))\n",
        2,
        r"model\.py:18: the loss depends on none of the parameters that the optimizer trains: "
        r"extra\.weight, extra\.bias",
        "detach",
    ),
    "foreign parameter": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, batch(), loss, torch.optim.SGD(Net().parameters(), lr=0.1))\n",
        2,
        r"model\.py:18: the loss does not read parameter 0 of the optimizer's group 0, of shape "
        r"\[8, 4\]",
        "",
    ),
    "closure": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    return Workload(m, batch(), loss, torch.optim.LBFGS(m.parameters()))\n",
        2,
        r"model\.py:18: LBFGS\.step\(\) needs a closure",
        "AdamW",
    ),
    "sparse gradients": (
        HEAD + "class Words(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words = nn.Embedding(9, 4, sparse=True)\n"
        "        self.net = Net()\n"
        "    def forward(self, x):\n"
        "        return self.net(self.words(x))\n"
        "def workload():\n"
        "    m = Words()\n"
        "    b = torch.randint(0, 9, (3,)), torch.randint(0, 2, (3,))\n"
        "    return Workload(m, b, loss, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:24: the embedding words makes sparse gradients",
        "sparse=False",
    ),
    "half the workload": (
        HEAD + "def workload():\n    return Workload(Net(), batch(), loss)\n",
        2,
        r"model\.py:19: .*a loss or an optimizer, but not both",
        "",
    ),
    "double-precision parameters": (
        HEAD + "def workload():\n"
        "    m = Net()\n"
        "    m.two.double()\n"
        "    def mixed(model, x, y):\n"
        "        hidden = model.one(x).double()\n"
        "        return nn.functional.cross_entropy(model.two(hidden).float(), y)\n"
        "    return Workload(m, batch(), mixed, torch.optim.SGD(m.parameters(), lr=0.1))\n",
        2,
        r"model\.py:18: the parameter two\.weight is float64",
        "float32",
    ),
}


IN_PIECES = ("packed sequence", "data-dependent control flow")
"""Cases that run in pieces; `check` needs one graph."""


@pytest.mark.parametrize(
    ("command", "case"),
    [
        (command, case)
        for command in ([], ["run"], ["check"])
        for case in CASES
        if (command == ["check"]) == (case in IN_PIECES)
    ],
)
def test_bad_input_is_one_sentence_with_its_place(
    case: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, code, pattern, advice = CASES[case]
    (tmp_path / "model.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert exit_code([*command, "model.py"]) == code
    error = capsys.readouterr().err.strip()
    if command == ["run"] and "data" in error and "has no data" in error:
        pytest.fail("a workload that cannot be compiled was first asked for its data")
    assert error.startswith("mpcompile: ")
    assert "Traceback" not in error
    assert error.count("\n") == 0
    assert re.search(pattern, error), error
    assert advice in error
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mp"] == []


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["nowhere/model.py"]) == 2
    assert "nowhere/model.py: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["check"], ["lint"], ["inspect"], ["report"]])
def test_an_empty_name_of_a_file_is_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code([*command, ""]) == 2
    error = capsys.readouterr().err
    assert error.startswith(("mpcompile: there is no such file", "mpcompile: the folder holds"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspct"], "no command, file or module 'inspct' (did you mean 'inspect'?)"),
        (["nothing_like_it"], "no command, file or module 'nothing_like_it'"),
        (["inspect", "nothing_like_it"], "no file and no module 'nothing_like_it'"),
        (["nowhere/model"], "nowhere/model: there is no such file"),
    ],
)
def test_what_is_not_there_is_told_before_torch_is_imported(
    words: list[str], sentence: str
) -> None:
    program = (
        "import sys\nfrom mpcompile.cli import exit_code\n"
        f"code = exit_code({words})\nprint(code, 'torch' in sys.modules, 'onnx' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert sentence in done.stderr
    assert done.stdout == "2 False False\n"


def test_an_unknown_module_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["no_such_package.models:net"]) == 2
    assert "no_such_package.models:net" in capsys.readouterr().err


def test_an_unknown_option_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").touch()
    assert exit_code(["run", str(tmp_path / "model.py"), "--stepps", "3"]) == 2
    assert "--stepps" in capsys.readouterr().err


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text("raise ValueError('mine')\n")
    monkeypatch.chdir(tmp_path)
    assert exit_code(["model.py", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "ValueError: mine" in error


def test_a_defect_of_ours_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text(
        HEAD + "def workload():\n    return Workload(Net(), batch()[:1])\n"
    )
    monkeypatch.chdir(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise AssertionError("broken on purpose")

    monkeypatch.setattr("mpcompile.commands.transform.summarize", broken)
    assert exit_code(["model.py"]) == 70
    error = capsys.readouterr().err
    assert "a defect of mpcompile" in error
    assert "Traceback" not in error
    assert list(tmp_path.glob("*.mp")) == []
