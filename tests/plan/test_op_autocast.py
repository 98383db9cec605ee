"""The op table against the op lists that torch's own autocast tests go through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from root import ROOT
from torch.testing._internal.autocast_test_lists import (
    AutocastCPUTestLists,
    AutocastTestLists,
)

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import PrecisionClass

# What a list of autocast asks for, and the classes that do it.
EXPECTED: dict[str, tuple[PrecisionClass, ...]] = {
    "16 bits": (PrecisionClass.TENSOR_CORE,),
    "FP32": (PrecisionClass.WIDE,),
    "widest": (PrecisionClass.EITHER, PrecisionClass.TRANSPARENT),
}
LISTS: dict[str, str] = {
    "torch_fp16": "16 bits",
    "torch_16": "16 bits",
    "nn_fp16": "16 bits",
    "nn_16": "16 bits",
    "linalg_fp16": "16 bits",
    "methods_fp16": "16 bits",
    "torch_fp32": "FP32",
    "nn_fp32": "FP32",
    "methods_fp32": "FP32",
    "banned": "FP32",
    "torch_need_autocast_promote": "widest",
    "torch_expect_builtin_promote": "widest",
    "methods_expect_builtin_promote": "widest",
}

# Ops planned otherwise than autocast plans them; docs/op-classes.md prints the same table.
DIFFERENCES: dict[str, str] = {
    "prelu": "it is pointwise: no Tensor Core runs it, either precision is right",
    "softmax": "the arithmetic is FP32, the result in [0, 1] may be stored in 16 bits",
    "log_softmax": "the arithmetic is FP32; rounding a result costs what rounding its input costs",
    "layer_norm": "the arithmetic is FP32, so are scale and bias; only its input and result narrow",
    "group_norm": "the arithmetic is FP32, so are scale and bias; only its input and result narrow",
    "rms_norm": "the arithmetic is FP32, so is the scale; only its input and result narrow",
    "avg_pool3d": "its kernels sum in FP32, and a mean is no larger than its inputs",
    "reflection_pad1d": "it copies values",
    "bilinear": "it is a matrix product: a Tensor Core does it",
    "tensordot": "it is a matrix product: a Tensor Core does it",
    "dot": "it is a sum: it may outgrow FP16, and no Tensor Core runs it",
    "vdot": "it is a sum: it may outgrow FP16, and no Tensor Core runs it",
    "grid_sampler": "the arithmetic and the grid are FP32, the sampled image may be 16 bits",
    "scatter_add": "it is a sum of any length: in 16 bits every addend would be rounded",
}
PAGE = ROOT / "docs" / "op-classes.md"


def listed() -> list[tuple[str, str]]:
    """Return (op, what autocast makes of it) for all entries of both devices' lists."""
    both: tuple[Any, ...] = (AutocastTestLists("cpu"), AutocastCPUTestLists(torch.device("cpu")))
    return sorted(
        {
            (entry[0].strip("_") if entry[0].startswith("__") else entry[0], LISTS[name])
            for lists in both
            for name, entries in vars(lists).items()
            for entry in entries
        }
    )


@pytest.mark.parametrize(("op", "asked"), listed())
def test_every_op_is_planned_as_autocast_lists_it_or_named_with_a_reason(
    op: str, asked: str
) -> None:
    agrees = TORCH_RULES[op].precision_class in EXPECTED[asked]
    assert agrees != (op in DIFFERENCES)


def test_the_lists_are_not_empty() -> None:
    assert len(listed()) > 100
    assert set(DIFFERENCES) - {"rms_norm"} <= {op for op, _ in listed()}  # listed since 2.12


def test_the_page_prints_the_differences() -> None:
    asked = {"rms_norm": "FP32", **dict(listed())}
    rows = {
        f"| `{op}` | {asked[op]} | {TORCH_RULES[op].precision_class.value} | {reason} |"
        for op, reason in DIFFERENCES.items()
    }
    lines = PAGE.read_text().splitlines()
    assert rows == {line for line in lines if line.startswith("| `")}
