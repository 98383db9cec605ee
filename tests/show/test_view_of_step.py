"""A training step as rows."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from mpcompile.pipeline import transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.program.workload import Workload, load
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import summarize
from mpcompile.show.view import View
from mpcompile.step.transformed import Choices


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.fc = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.norm(x)) + x
        return y


def workload() -> Workload:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(
        model, (torch.randn(8, 64),), lambda model, x: model(x).square().mean(), optimizer
    )


def lines(view: View) -> str:
    return "\n".join(
        f"{node.stage:8} {node.op:26} {node.precision:5} {node.type.split()[0]:11}"
        f" {node.where.module:4} {node.reason}".rstrip()
        for node in view.nodes
        if node.role in ("op", "cast") and node.stage != "update"
    )


def test_every_node_of_a_step_has_a_precision_and_a_reason() -> None:
    view = view_of(transform(workload()), "net.py")
    assert_expected_inline(
        lines(view),
        """\
forward  native_layer_norm          both  f32[8,64]   norm statistics are summed in FP32, storage may be 16 bits; stored in f16: no choice writes fewer bytes
forward  _to_copy                   both  f16[8,64]   fc   stored in 16 bits, computed in FP32
forward  addmm                      f16   f16[8,64]   fc   a Tensor Core accumulates it in FP32
forward  _to_copy                   both  f32[8,64]        read by arithmetic in FP32
forward  add                        both  f32[8,64]        it reads a number of the batch beside a layer's result, and 16 bits would round that
forward  pow                        f32   f32[8,64]        its result can leave the range of FP16, or it is steep
forward  mean                       f32   f32[]            a single number: nothing to save in 16 bits
backward div                        f32   f32[8,64]        backward of mean (mean): a single number: nothing to save in 16 bits
backward pow                        f32   f32[8,64]        backward of square (square): its result can leave the range of FP16, or it is steep
backward mul                        f32   f32[8,64]        backward of square (square): its result can leave the range of FP16, or it is steep
backward mul                        both  f32[8,64]        backward of square (square): its result can leave the range of FP16, or it is steep
backward _to_copy                   both  f16[8,64]        the gradient of linear is stored in f16, like linear
backward mm                         f16   f16[8,64]   fc   backward of linear (linear): a Tensor Core accumulates it in FP32
backward mm                         f16   f16[64,64]  fc   backward of linear (linear): a Tensor Core accumulates it in FP32
backward sum                        f16   f16[1,64]   fc   backward of linear (linear): a Tensor Core accumulates it in FP32
backward _to_copy                   both  f32[8,64]   fc   arithmetic in FP32 reads the gradient of layer_norm
backward native_layer_norm_backward both  f32[64]     norm backward of layer_norm (layer_norm): statistics are summed in FP32, storage may be 16 bits; stored in f16: no choice writes fewer bytes""",
    )


def test_a_program_without_a_loss_is_its_forward_graph() -> None:
    given = workload()
    view = view_of(transform(Workload(given.model, given.batch)), "net.py")
    assert {node.stage for node in view.nodes} == {"forward"}
    assert [node.op for node in view.nodes if node.role == "op"] == ["layer_norm", "linear", "add"]
    assert [node.op for node in view.nodes if node.role == "output"] == ["result.0"]


@pytest.mark.parametrize("name", ["gpt", "lstm", "resnet"])
def test_views_of_the_models_are_consistent(name: str) -> None:
    mixed = transform(load(f"models/{name}.py"))
    view = view_of(mixed, name)
    assert View.from_json(view.to_json()) == view
    summary = summarize(mixed, mixed)
    before_update = [node for node in view.nodes if node.stage != "update"]
    assert max(node.alive for node in before_update) == summary.memory["mixed"]["peak"]
    casts = [node for node in view.nodes if node.role == "cast"]
    assert len(casts) == summary.casts
    assert sum(node.bytes for node in casts) < summary.cast_bytes
    unexplained = [
        node.id
        for node in view.nodes
        if not node.reason and node.role in ("op", "cast") and node.precision != "other"
    ]
    assert not unexplained


def test_in_full_precision_no_tensor_is_16_bits() -> None:
    view = view_of(transform(workload(), Choices(policy=FULL_PRECISION)), "net.py")
    assert view.precision == "fp32"
    assert {node.precision for node in view.nodes} <= {"f32", "other"}
    narrow = view_of(transform(workload(), Choices(policy=Policy(full=("fc",)))), "net.py")
    assert not any(node.role == "op" and node.precision == "f16" for node in narrow.nodes)
