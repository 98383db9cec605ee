"""Lint finds shapes and layouts that slow Tensor Cores down, and knows which a pass fixes."""

from __future__ import annotations

import pytest
import torch
from programs.lint_programs import findings, line_of
from torch import Tensor, nn

from mpcompile import Policy, Workload
from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import Node, Program, Size
from mpcompile.lint.rules import lint
from mpcompile.lint.shapes import LEAST_FLOPS, misaligned_shapes
from mpcompile.lint.torch_program import program_of
from mpcompile.precision import Precision
from mpcompile.program.capture import capture

ERROR, WARNING, NOTE = Severity
ROWS = 2048


class Wide(nn.Module):
    """A linear within a block, of a given width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)  # a linear
        return result


def linear(inputs: int, outputs: int, rows: int = ROWS, **options: Policy) -> list[Finding]:
    return findings(Wide(inputs, outputs), torch.randn(rows, inputs), **options)  # type: ignore[arg-type]


def test_a_misaligned_linear_is_found_with_the_padding_that_fixes_it() -> None:
    (found,) = linear(64, 100)
    assert (found.rule, found.severity, found.op) == ("MP401", WARNING, "linear")
    assert (found.node, found.where.module) == ("linear", "block.0")
    assert found.where.line == line_of(__file__, "a linear")
    assert found.message.startswith("100 outputs are no multiple of 8")
    assert found.fix == "use 104 (4 more, 4.0% more work)"
    (found,) = linear(100, 64)
    assert found.message.startswith("100 inputs are no multiple of 8")


def test_aligned_fp32_or_tiny_linears_are_not_findings() -> None:
    assert linear(64, 104) == []
    assert linear(64, 100, policy=Policy(full=("linear",))) == []
    assert linear(64, 100, rows=8) == []


def test_bf16_needs_the_same_alignment() -> None:
    (found,) = linear(64, 100, policy=Policy(precision=Precision.BF16))
    assert found.rule == "MP401"


def test_a_linear_that_a_pass_pads_is_a_note() -> None:
    (found,) = linear(16, 2049)
    assert (found.rule, found.severity) == ("MP401", NOTE)
    assert "the pass pad_vocabulary makes them 2,056" in found.message
    model = Wide(16, 2049)
    workload = Workload(
        model,
        (torch.randn(ROWS, 16),),
        lambda m, x: m(x).mean(),
        torch.optim.AdamW(model.parameters()),
    )
    program = program_of(workload, capture(workload), Policy(), without=("pad_vocabulary",))
    (found,) = lint(program)
    assert found.severity is WARNING


@pytest.mark.parametrize("count", range(1, 65))
def test_a_size_is_found_if_and_only_if_it_is_not_a_multiple_of_eight(count: int) -> None:
    node = Node(
        "a",
        "linear",
        "matmul",
        computes=Precision.FP16,
        flops=LEAST_FLOPS,
        sizes=(Size("outputs", count),),
    )
    found = list(misaligned_shapes(Program("", "torch", Precision.FP16, (node,))))
    assert len(found) == (count % 8 != 0)


def test_a_share_of_the_work_below_a_hundredth_is_not_a_finding() -> None:
    sizes = (Size("outputs", 10),)
    small = Node("a", "linear", "matmul", computes=Precision.FP16, flops=LEAST_FLOPS, sizes=sizes)
    for factor, expected in ((98, 1), (100, 0)):
        large = Node("b", "linear", "matmul", computes=Precision.FP16, flops=factor * LEAST_FLOPS)
        program = Program("", "torch", Precision.FP16, (small, large))
        assert len(list(misaligned_shapes(program))) == expected


class Heads(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 3 * 4 * features)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.enter(x).view(2, 512, 4, -1).transpose(1, 2).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_features_of_a_head() -> None:
    found = findings(Heads(20), torch.randn(2, 512, 64), rule="MP4")
    assert [(item.op, item.message[:23]) for item in found] == [
        ("scaled_dot_product_attention", "20 features of a head a")
    ]
    assert findings(Heads(24), torch.randn(2, 512, 64)) == []


class Recurrent(nn.Module):
    def __init__(self, cells: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(64, cells)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)[0]
        return result


def test_cells_of_a_recurrent_layer() -> None:
    (found,) = findings(Recurrent(100), torch.randn(16, 32, 64))
    assert (found.rule, found.op, found.where.module) == ("MP401", "lstm", "layer")
    assert found.message.startswith("100 cells are no multiple of 8")
    assert findings(Recurrent(104), torch.randn(16, 32, 64)) == []


def images(channels: int) -> Tensor:
    return torch.randn(8, channels, 32, 32).to(memory_format=torch.channels_last)


def test_channels_of_a_convolution_but_not_those_of_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3))
    found = findings(model, images(3))
    assert [(item.where.module, item.message[:20]) for item in found] == [
        ("2", "12 input channels ar"),
    ]
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    assert findings(model, images(3)) == []


class Images(nn.Module):
    """Convolutions; on request one of them reads another layout."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 3) for _ in range(3))
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.breaks:
            x = x.contiguous()
        x = self.second(x)  # another layout
        result: Tensor = self.third(torch.relu(x))
        return result


def test_images_that_are_not_channels_last_are_found_once() -> None:
    (found,) = findings(Images(False), images(8).contiguous())
    assert (found.rule, found.severity, found.where.module) == ("MP501", NOTE, "first")
    assert found.detail == "3 convolutions, this is the first"
    assert findings(Images(False), images(8)) == []


def test_the_convolution_that_breaks_the_layout_is_found() -> None:
    (found,) = findings(Images(True), images(8))
    assert (found.rule, found.op, found.where.module) == ("MP501", "conv2d", "second")
    assert found.where.line == line_of(__file__, "another layout")
    assert found.detail == "2 convolutions, this is the first"


def test_with_one_channel_the_result_decides_the_layout() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))
    (found,) = findings(model, torch.randn(4, 1, 8, 8))
    assert (found.rule, found.where.module) == ("MP501", "0")
    policy = Policy(full=("conv",))
    assert findings(model, torch.randn(4, 1, 8, 8), policy=policy) == []
