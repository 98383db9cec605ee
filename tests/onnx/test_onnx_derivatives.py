"""Every op that torch's derivatives call has a way into an exported step, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.onnx.derivatives import Way, backward_ops, way_of
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Choices

NETS = {
    "rows": nn.Sequential(
        nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.Mish(), nn.Softshrink(0.1), nn.Linear(8, 8)
    ),
    "images": nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, padding_mode="replicate"),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.ReplicationPad2d(1),
        nn.Conv2d(8, 8, 3),
        nn.Upsample(size=(5, 7), mode="bilinear"),
        nn.AdaptiveMaxPool2d(2),
        nn.Conv2d(8, 4, 1),
    ),
}


class Extremes(nn.Module):
    """The gradient of an extreme asks which numbers are equal to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(x, dim=2)
        rows = 0.2 * torch.cat([x.amax(1), x.amin(1), low, high], 1)
        return rows - rows.amax(1, keepdim=True) + x.max(2).values.mean(1, keepdim=True)


NETS["extremes"] = nn.Sequential(
    nn.Conv2d(4, 8, 3, padding=1), nn.ZeroPad2d((1, 2, 0, 3)), nn.Flatten(2), Extremes()
)


@pytest.mark.parametrize("name", ["silu_backward", "mish_backward", "gelu_backward"])
def test_what_torch_writes_in_other_ops_is_exported(name: str) -> None:
    assert way_of(name) is Way.TORCH


def test_the_ops_of_common_nets_have_a_way() -> None:
    refused = {name for name in backward_ops() if way_of(name) is Way.NONE}
    assert len(backward_ops()) > 100
    common = "upsample norm conv relu elu softmax nll loss pad shrink sigmoid tanh select slice"
    known = {"_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_lanczos2d_aa"}
    known |= {"_masked_softmax", "_slow_conv2d", "_weight_norm_interface", "_ctc_loss"}
    known |= {"multi_margin_loss", "multilabel_margin_loss"}
    named = {name for name in refused if any(part in name for part in common.split())}
    assert {name.removesuffix("_backward") for name in named} <= known


@pytest.mark.parametrize("kind", NETS)
def test_a_step_with_them_trains_as_torch_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NETS[kind]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm):
            module.reset_parameters()
    x = torch.randn(8, 8) if kind == "rows" else torch.randn(2, 4, 6, 5)
    target = torch.randn_like(model(x))

    def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(x), target)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    work = Workload(model, (x, target), loss, optimizer)
    file = tmp_path / "train.onnx"
    export_step(transform(work, Choices(loss_scale=LossScale.static(16.0))), file)
    step = OrtTrainStep(file)
    found, wanted = [], []
    for _ in range(5):
        found.append(float(step(x.numpy(), target.numpy())))
        optimizer.zero_grad()
        value = loss(model, x, target)
        value.backward()
        optimizer.step()
        wanted.append(value.item())
    assert wanted[-1] < wanted[0]
    assert step.skipped == 0
    assert found == pytest.approx(wanted, rel=5e-3)
