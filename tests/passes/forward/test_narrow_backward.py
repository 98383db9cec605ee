"""Tensor Core ops in the backward of a Function follow its forward."""

from __future__ import annotations

import pytest
import torch
from programs.functions import FUNCTIONS
from torch import fx

from mpcompile.passes.forward.narrow_backward import narrow_backward
from mpcompile.passes.order import forward_passes
from mpcompile.pipeline import describe
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.capture import capture
from mpcompile.program.derivatives.own_backward import OwnBackward
from mpcompile.program.workload import Workload


def _forward(name: str, precision: Precision) -> fx.GraphModule:
    model, loss = FUNCTIONS[name]()
    batch = (torch.randn(6, 8), torch.randn(6, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward = capture(Workload(model, batch, loss, optimizer))
    plan = make_plan(describe(forward, Policy(precision=precision)), precision)
    for rewrite in forward_passes(plan):
        rewrite(forward.module)
    return forward.module


def _narrow(module: fx.GraphModule) -> list[object]:
    nodes = [node for node in module.graph.nodes if isinstance(node.target, OwnBackward)]
    return [node.kwargs.get("narrow") for node in nodes]


@pytest.mark.parametrize(
    ("name", "precision", "narrow"),
    [
        ("linear_by_hand", Precision.FP16, torch.float16),
        ("linear_by_hand", Precision.BF16, torch.bfloat16),
        ("linear_by_hand", Precision.FP32, None),
        ("asks_for_fp32", Precision.FP16, None),
        ("gradient_scaling", Precision.FP16, None),  # no Tensor Core op inside, though one before
    ],
)
def test_backward_has_the_dtype_of_the_matmuls_of_forward(
    name: str, precision: Precision, narrow: torch.dtype | None
) -> None:
    module = _forward(name, precision)
    assert _narrow(module) == [narrow]
    assert narrow_backward(module) == 0
