"""Exported steps train as torch does, and contain only nodes that a GPU runs in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import mpcompile
from bench.onnx.training import cnn, follow, made
from mpcompile.errors import BadInput, CannotCapture
from mpcompile.onnx.plain_graph import SEED, plain_step
from mpcompile.onnx.step_export import export_step, to_onnx
from mpcompile.onnx.tidying import IR_VERSION, OPSET
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.onnx_graph.kernels import Provider, formats
from mpcompile.pipeline import to_step, transform
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (*NARROW, ir.DataType.FLOAT)
# Ops that CUDA lacks, that need the host, or that compute other numbers than in training.
NEVER = frozenset(
    "If Loop Scan BatchNormalization Dropout RandomUniform RandomUniformLike RandomNormal "
    "RandomNormalLike Bernoulli Multinomial EyeLike Mean BitShift BitwiseXor BitwiseAnd Tan Unique "
    "SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss".split()
)


@pytest.mark.parametrize(
    ("name", "optimizer", "steps"),
    [
        ("cnn", "adamw", 100),
        ("cnn", "sgd", 100),
        ("gpt", "adamw", 30),
        ("resnet", "sgd", 8),
        ("lstm", "adamw", 5),
    ],
)
def test_losses_are_close_to_those_of_torch(name: str, optimizer: str, steps: int) -> None:
    found = follow(name, optimizer, steps)
    assert found.within, found
    assert found.skipped, found


def values(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in model.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is not None and isinstance(value.type, ir.TensorType):
                yield node, value


@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_a_gpu_runs_every_node_and_sums_in_fp32(name: str) -> None:
    transformed = transform(made(name, "tiny"))
    assert transformed.step is not None
    model = to_onnx(plain_step(transformed.step))
    assert (model.ir_version, model.opset_imports[""]) == (IR_VERSION, OPSET)
    for node in model.graph.all_nodes():
        assert node.domain in ("", "ai.onnx")
        assert node.op_type not in NEVER
    products = 0
    for node, value in values(model):
        sums = node.op_type.startswith("Reduce") and node.op_type not in ("ReduceMax", "ReduceMin")
        if value.dtype in NARROW:
            assert not sums, node
            assert "h" in formats(Provider.CUDA, node.op_type, OPSET), node
            products += node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
        if value.dtype is ir.DataType.FLOAT:
            assert "f" in formats(Provider.CUDA, node.op_type, OPSET), node
        if node.op_type in ("Where", "Pad") and value is node.outputs[0]:
            assert value.dtype is not ir.DataType.BOOL, node
    assert products >= 9  # Tensor Cores still have their work


def test_an_epsilon_of_1e_10_is_kept(tmp_path: Path) -> None:
    """An exporter's optimizer treats it as 0; then Adagrad divides 0 by 0 without a gradient."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    batch = (torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 2]))

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    workload = Workload(model, batch, loss, torch.optim.Adagrad(model.parameters(), eps=1e-10))
    export_step(transform(workload), tmp_path / "train.onnx")
    step = OrtTrainStep(tmp_path / "train.onnx")
    for _ in range(3):
        assert np.isfinite(float(step(*(value.numpy() for value in batch))))
    assert all(np.isfinite(each).all() for each in step.parameters().values())


class Dropping(nn.Module):
    """Returns the result of a dropout, scaled by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.first, self.second = nn.Dropout(0.25), nn.Dropout(0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = self.first(x) * self.weight + 1000 * self.second(x)
        return kept.mean()


def dropping() -> Workload:
    model = Dropping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Workload(model, (torch.ones(64, 64),), lambda model, x: model(x), optimizer)


def test_masks_are_new_in_each_step_and_the_same_for_a_seed(tmp_path: Path) -> None:
    file = tmp_path / "train.onnx"
    ones = np.ones((64, 64), np.float32)
    torch.manual_seed(7)
    described = export_step(transform(dropping()), file)
    assert [slot.role for slot in described.state if slot.name == SEED] == ["seed"]
    step = OrtTrainStep(file)
    losses = [float(step(ones)) for _ in range(6)]
    assert len(set(losses)) == 6
    again = OrtTrainStep(file)
    assert [float(again(ones)) for _ in range(6)] == losses
    torch.manual_seed(8)
    export_step(transform(dropping()), file, force=True)
    other = OrtTrainStep(file)
    assert not set(losses) & {float(other(ones)) for _ in range(6)}


def test_forward_and_backward_use_the_same_mask(tmp_path: Path) -> None:
    """The gradient of the weight is the mean of the first mask's result."""
    workload = dropping()
    workload.optimizer.param_groups[0]["lr"] = 1.0  # type: ignore[union-attr]
    export_step(
        transform(workload, Choices(policy=mpcompile.FULL_PRECISION)), tmp_path / "train.onnx"
    )
    step = OrtTrainStep(tmp_path / "train.onnx")
    loss = float(step(np.ones((64, 64), np.float32)))
    first = 1.0 - float(step.parameters()["weight"])
    # Each mask keeps a multiple of 1/4096, divided by 0.75.
    kept = first * 0.75 * 4096
    assert abs(kept - round(kept)) < 0.05
    assert 0.6 < first < 1.4
    rest = (loss - first) * 0.75 * 4096 / 1000
    assert abs(rest - round(rest)) < 0.05


def test_other_random_numbers_are_refused_with_their_line() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((x + torch.randn_like(x)) * self.weight).mean()

    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    workload = Workload(model, (torch.ones(4, 4),), lambda model, x: model(x), optimizer)
    transformed = transform(workload)
    assert transformed.step is not None
    with pytest.raises(CannotCapture, match=r"random numbers, which an exported step cannot do"):
        plain_step(transformed.step)


def test_a_frozen_weight_is_state_in_fp32_that_no_step_changes(tmp_path: Path) -> None:
    """The file contains it once: an additional 16-bit copy could be of another weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].requires_grad_(False)
    batch = torch.randn(4, 8), torch.tensor([0, 2, 1, 0])

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    workload = Workload(model, batch, loss, torch.optim.SGD(model[2].parameters(), lr=0.1))
    transformed = transform(workload)
    described = export_step(transformed, tmp_path / "train.onnx")
    frozen = {slot.name: slot for slot in described.state if slot.role == "constant"}
    assert frozen.keys() == {"0.weight", "0.bias"}
    assert all((slot.dtype, slot.next) == ("float32", "") for slot in frozen.values())
    assert not any(slot.role == "shared" for slot in described.state)
    exported, compiled = OrtTrainStep(tmp_path / "train.onnx"), to_step(transformed)
    for _ in range(4):
        expected = float(compiled(*batch))
        found = float(exported(*(value.numpy() for value in batch)))
        assert found == pytest.approx(expected, rel=2.0**-9)
    parameters = exported.parameters()
    assert parameters.keys() == dict(model.named_parameters()).keys()
    for name in frozen:
        assert np.array_equal(parameters[name], model.get_parameter(name).detach().numpy())


def test_the_users_tensors_do_not_change_and_no_file_is_overwritten(tmp_path: Path) -> None:
    workload = cnn()
    before = {name: value.clone() for name, value in workload.model.state_dict().items()}
    file = tmp_path / "train.onnx"
    export_step(transform(workload), file)
    assert all(torch.equal(v, before[k]) for k, v in workload.model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train.json",
        "train.onnx",
        "train.safetensors",
    ]
    with pytest.raises(BadInput, match="already exists"):
        export_step(transform(workload), file)
    forward = Workload(nn.Linear(2, 2), (torch.ones(1, 2),))
    with pytest.raises(BadInput, match="has no loss"):
        export_step(transform(forward), tmp_path / "other.onnx")
