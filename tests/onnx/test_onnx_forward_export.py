"""A model for inference as an ONNX graph in mixed precision, and ``mpcompile export``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from programs.onnx_models import Array, run
from torch import nn

import mpcompile
from mpcompile.cli import exit_code
from mpcompile.errors import BadInput, CannotCapture
from mpcompile.onnx.forward_export import export_forward
from mpcompile.program.workload import Workload


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def workload() -> Workload:
    model = net()
    batch = (torch.randn(4, 3, 9, 9), torch.randint(0, 5, (4,)))
    return Workload(model, batch, loss, torch.optim.SGD(model.parameters()))


def test_the_model_alone_in_evaluation_mode(tmp_path: Path) -> None:
    work = workload()
    file = tmp_path / "forward.onnx"
    done = export_forward(work, file)
    assert done.casts
    assert work.model.training
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    with torch.no_grad():
        wanted = net().eval()(work.batch[0]).numpy()
    (found,) = run(proto, {proto.graph.input[0].name: work.batch[0].numpy()})
    assert found.dtype == np.float32
    assert float(np.abs(found - wanted).max()) < 2**-8 * float(np.abs(wanted).max())
    types = {tensor.data_type for tensor in proto.graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT16 in types
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert stored["0.weight"] == stored["6.weight"] == onnx.TensorProto.FLOAT16
    with pytest.raises(BadInput, match="already exists"):
        export_forward(work, file)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        made: torch.Tensor = self.fc(x)
        made = made if mask is None else made * mask
        return made if labels is None else (made - labels).square().mean()


@pytest.mark.parametrize("trained", [True, False])
def test_a_batch_with_names_gives_named_inputs_without_labels(
    trained: bool, tmp_path: Path
) -> None:
    model = Named()
    batch: dict[str, torch.Tensor] = {"mask": torch.ones(2, 3), "x": torch.randn(2, 4)}
    work = Workload(model, batch)
    if trained:
        more = {**batch, "labels": torch.zeros(2, 3), "weight": torch.ones(())}
        optimizer = torch.optim.SGD(model.parameters())

        def weighted(model: nn.Module, weight: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = weight * model(**named)
            return value

        work = Workload(model, more, weighted, optimizer)
    export_forward(work, tmp_path / "forward.onnx", dynamic=True)
    proto = onnx.load(tmp_path / "forward.onnx")
    assert {item.name for item in proto.graph.input} == {"x", "mask"}
    given: dict[str, Array] = {
        "x": np.ones((5, 4), np.float32),
        "mask": np.zeros((5, 3), np.float32),
    }
    assert not run(proto, given)[0].any()


def test_the_batch_size_may_be_open(tmp_path: Path) -> None:
    work = workload()
    export_forward(work, tmp_path / "forward.onnx", dynamic=True)
    proto = onnx.load(tmp_path / "forward.onnx")
    for count in (1, 7):
        x = np.ones((count, 3, 9, 9), np.float32)
        assert run(proto, {proto.graph.input[0].name: x})[0].shape == (count, 5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, proj_size=4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lstm(x)[0]
        return out


def test_an_lstm_with_projection_is_unrolled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(2, 5, 8)
    export_forward(Workload(model, (x,)), tmp_path / "forward.onnx")
    proto = onnx.load(tmp_path / "forward.onnx")
    (found,) = run(proto, {proto.graph.input[0].name: x.numpy()})
    with torch.no_grad():
        wanted = model(x).numpy()
    assert float(np.abs(found - wanted).max()) < 2**-8 * float(np.abs(wanted).max())


def test_a_model_that_cannot_be_one_graph_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CannotCapture, match="cannot become one graph"):
        export_forward(Workload(Branching(), (torch.ones(2),)), tmp_path / "forward.onnx")


def test_an_exported_program_is_rewritten_after_the_export() -> None:
    inputs = (torch.randn(4, 3, 9, 9),)
    program = torch.onnx.export(net().eval(), inputs, dynamo=True, verbose=False)
    assert program is not None
    before = ir.to_proto(program.model)
    narrow = mpcompile.rewrite(program)
    assert type(narrow) is type(program)
    assert ir.to_proto(program.model) == before
    assert narrow.exported_program is program.exported_program
    convolution = next(node for node in narrow.model.graph if node.op_type == "Conv")
    assert convolution.outputs[0].dtype is ir.DataType.FLOAT16


PROGRAM = """
import torch, mpcompile
def loss(model, x, y):
    return torch.nn.functional.mse_loss(model(x), y)
def workload():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    batch = (torch.randn(8, 8), torch.randn(8, 4))
    return mpcompile.Workload(model, batch, loss, torch.optim.AdamW(model.parameters()))
"""


def test_the_command_chooses_by_the_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PROGRAM)
    assert exit_code(["export", "model.py", "--to", "train.onnx", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "step"
    assert document["files"] == ["train.onnx", "train.json", "train.safetensors"]
    assert all(Path(file).is_file() for file in document["files"])
    assert exit_code(["export", "model.py", "--to", "forward.onnx", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "forward"
    for wrong in (
        ["--to", "train.onnx"],
        ["--to", "train.pt"],
        ["--to", "step.onnx", "--dynamic"],
    ):
        assert exit_code(["export", "model.py", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
