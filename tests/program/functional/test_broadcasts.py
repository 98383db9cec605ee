"""Each input of ``broadcast_tensors`` gets an op of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload
from mpcompile.torch_private.ops import op_name


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


def in_fp32(
    model: nn.Module, batch: tuple[Tensor, ...], dynamic: bool = False
) -> mpcompile.TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    policy = mpcompile.FULL_PRECISION
    return mpcompile.compile(model, loss, optimizer, batch, policy=policy, dynamic=dynamic)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("shape", "ops"),
    [((4, 3), ["linear", "mse_loss"]), ((4, 1), ["linear", "expand", "mse_loss"])],
)
def test_an_input_of_the_right_shape_is_passed_on(shape: tuple[int, ...], ops: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    batch = torch.randn(4, 8), torch.randn(shape)
    workload = Workload(model, batch, loss, torch.optim.SGD(model.parameters()))
    forward = capture(workload)
    called = [node for node in forward.module.graph.nodes if node.op == "call_function"]
    assert [op_name(node) for node in called] == ops
    step = in_fp32(model, batch)
    assert torch.equal(step(*batch), loss(model, *batch))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("shape", [(4, 3), (4, 1)])
def test_an_open_batch_size_is_right(shape: tuple[int, ...]) -> None:
    model = nn.Linear(8, 3)
    batch = torch.randn(4, 8), torch.randn(shape)
    step = in_fp32(model, batch, dynamic=True)
    for size in (4, 7, 2):
        other = torch.randn(size, 8), torch.randn(size, shape[1])
        torch.testing.assert_close(step(*other), loss(model, *other))
