"""``mpcompile explain``: its sentences, and the cost of the other choice against a real plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from mpcompile.cli import exit_code
from mpcompile.pipeline import transform
from mpcompile.plan.policy import Policy
from mpcompile.program.workload import Workload, load
from mpcompile.show.explain import ExplainInput, explain
from mpcompile.show.of_plan import view_of_plan
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import bytes_text
from mpcompile.step.transformed import Choices

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.second = nn.Linear(64, 64)

    def forward(self, x):
        hidden = self.second(torch.tanh(self.first(x)))
        return torch.softmax(hidden, -1)

def loss(model, x):
    return model(x).square().mean()

def workload():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return Workload(model, (torch.randn(8, 16),), loss, optimizer)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert exit_code(["explain", *arguments]) == 0
    return capsys.readouterr().out.replace(f"{Path.cwd()}/", "")


def test_an_op_is_explained_in_sentences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_expected_inline(
        said(capsys, "model.py", "linear_1"),
        """\
linear_1 is the op linear in second; f16 x 512.
It comes from model.py:12:  hidden = self.second(torch.tanh(self.first(x)))
It computes in FP16; its result is FP16 in memory.
Why: a Tensor Core accumulates it in FP32 (rule 'matmul' of the op table).
It reads tanh (tanh, f16), p_model_second_weight.f16 (cast, f16) and p_model_second_bias.f16 (cast, f16).
It is read by linear_1.f32 (cast, f32).
In FP32 instead: 5.2 kB fewer written, 25.0 kB fewer cast, 2 fewer casts, no Tensor Core, as the planner counts. `--full node:linear_1` requests it.
In the step it is addmm_1 (f16) in forward; mm (f16), mm_1 (f16) and sum_1 (f16) in backward.
""",
    )


def test_casts_backward_nodes_and_modules_are_explained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_expected_inline(
        said(capsys, "model.py", "batch_0.f16", "mm", "second"),
        """\
batch_0.f16 is a cast; f16 x 128.
It converts to FP16: 256 B are written if it is not fused.
Why: a batch, read in 16 bits.
It reads batch_0 (input, f32).
It is read by linear (linear, f16).
In the step it is _to_copy_2 (both) in forward.

mm is the op mm in second, in backward; f16[8,64].
It comes from model.py:12:  hidden = self.second(torch.tanh(self.first(x)))
It computes in FP16; its result is FP16 in memory.
Why: backward of linear_1 (linear): a Tensor Core accumulates it in FP32 (rule 'matmul' of the op table).
It reads _to_copy_10 (_to_copy, f16) and t_2 (t, f16).
It is read by tanh_backward (tanh_backward, f16).

second is a module with 1 op: 1 in f16.
Its part of the step has 0 casts and keeps 0 B for backward.
f16: linear_1 (linear): a Tensor Core accumulates it in FP32.
""",
    )


@pytest.mark.parametrize("op", ["linear", "tanh", "linear_1", "softmax"])
def test_the_cost_of_the_other_choice_equals_that_of_a_plan_with_the_override(
    folder: Path, capsys: pytest.CaptureFixture[str], op: str
) -> None:
    text = said(capsys, "model.py", op)
    mine = transform(load("model.py")).plan
    other = transform(load("model.py"), Choices(policy=Policy(full=(f"node:{op}",)))).plan
    assert f"`--full node:{op}` requests it." in text
    found = re.search(r"In FP32 instead: (?:(.*?) (more|fewer) written)?", text)
    assert found is not None
    written = other.cost - mine.cost
    assert found[1] == (bytes_text(abs(written)) if written else None)
    assert not written or found[2] == ("more" if written > 0 else "fewer")


def test_an_override_is_given_as_the_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "model.py", "linear_1", "--full", "second")
    assert "Why: the policy's full='second'" in text
    assert "In 16 bits instead:" in text
    assert "`--half node:linear_1` requests it." in text


def test_measured_ranges_are_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["calibrate", "model.py"]) == 0
    capsys.readouterr()
    text = said(capsys, "model.py", "softmax", "--ranges", "model.ranges.json")
    assert re.search(r"Measured over 1 batch, its result is at most 0\.\d+, [12]\d\.\d bits", text)


def test_a_model_that_was_not_rewritten_is_explained_by_its_plan(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["export", "model.py", "--to", "forward.onnx", "--precision", "fp32"]) == 0
    assert exit_code(["forward.onnx", "-o", "mixed.onnx"]) == 0
    capsys.readouterr()
    before = said(capsys, "forward.onnx", "node_linear_1")
    after = said(capsys, "mixed.onnx", "node_linear_1")
    reason = "a Tensor Core accumulates it in FP32"
    assert reason in before
    assert reason in after
    assert "It computes in FP16" in before
    assert "model.py:12:  hidden = self.second(torch.tanh(self.first(x)))" in after


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(["linear_9"], "did you mean 'linear"), ([], "no name was given")],
)
def test_an_unknown_name_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], names: list[str], sentence: str
) -> None:
    assert exit_code(["explain", "model.py", *names]) == 2
    assert sentence in capsys.readouterr().err


def test_every_node_of_a_view_can_be_explained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = transform(load("model.py"))
    planned, view = view_of_plan(made.plan, ""), view_of(made, "")
    subject = ExplainInput(view, planned, made.plan)
    for node in (*planned.nodes, *view.nodes):
        sentences = explain(subject, node.id)
        assert sentences[0].startswith(f"{node.id} is ")
        assert all(sentence.strip() for sentence in sentences)
    document = said(capsys, "model.py", "linear", "--json", "-")
    assert json.loads(document)["explained"]["linear"][0].startswith("linear is the op linear")


class Often(nn.Module):
    """A layer that is used often, on many rows and on one."""

    def __init__(self) -> None:
        super().__init__()
        self.many, self.one = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        row = x[:1]
        for _ in range(6):
            x, row = self.many(x).tanh(), self.one(row).tanh()
        return x + row


def test_a_weight_that_is_used_often_says_how_its_gradient_is_added() -> None:
    model = Often()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(64, 8),)
    work = Workload(model, batch, lambda model, x: model(x).square().mean(), optimizer)
    made = transform(work, Choices())
    subject = ExplainInput(view_of(made, "here"), view_of(made, "here"), made.plan)
    for weight in ("many_weight", "one_weight", "many_bias", "one_bias"):
        assert "Its gradient is added in FP32 over 6 uses." in explain(subject, f"{weight}_working")
    sums = [node for node in subject.view.nodes if node.reason.startswith("the sum of 6 terms")]
    assert sorted((node.op, node.stores) for node in sums) == [
        ("add", ("f32",)),
        ("add", ("f32",)),
        ("mm", ("f16",)),
        ("sum", ("f16",)),
    ]
