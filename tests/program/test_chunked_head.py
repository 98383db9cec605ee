"""The head in chunks against ``cross_entropy`` of a ``linear`` in FP64, and against no chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpcompile.program.chunked_head import SHIFT, chunked_head, wide_product
from mpcompile.step.record import record
from mpcompile.torch_private.tensors import fake_like, fake_mode

ROWS, FEATURES, CLASSES = 50, 16, 37


def inputs(bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=generator).to(dtype)
    weight = torch.randn(CLASSES, FEATURES, generator=generator).to(dtype)
    shift = torch.randn(CLASSES, generator=generator).to(dtype) if bias else None
    target = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    target[::7] = -100
    return x, weight, shift, target


def leaves(tensors: Any, dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in tensors if t is not None]


def error(found: Any, truth: Any) -> float:
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [8, 16, 64])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_are_as_near_to_fp64_as_those_without_chunks(
    bias: bool, mean: bool, rows: int, dtype: torch.dtype
) -> None:
    *floats, target = inputs(bias, dtype)
    reduction = "mean" if mean else "sum"
    truth = leaves(floats, torch.float64)
    loss = nn.functional.cross_entropy(nn.functional.linear(*truth), target, reduction=reduction)
    expected = torch.autograd.grad(loss, truth, torch.tensor(8.0).double())
    plain = leaves(floats, dtype)
    whole = nn.functional.cross_entropy(
        nn.functional.linear(*plain).float(), target, reduction=reduction
    )
    peers = torch.autograd.grad(whole, plain, torch.tensor(8.0))
    mine = leaves(floats, dtype)
    found = chunked_head(
        mine[0], mine[1], mine[2] if bias else None, target,
        classes=CLASSES, rows=rows, ignored=-100, mean=mean,
    )  # fmt: skip
    gradients = torch.autograd.grad(found, mine, torch.tensor(8.0))
    assert [g.dtype for g in gradients] == [dtype] * len(mine)
    assert abs(float(found) - float(loss)) <= 1.1 * abs(float(whole) - float(loss)) + 1e-5 * ROWS
    assert error(gradients, expected) <= 1.05 * error(peers, expected)


def test_columns_beyond_the_classes_count_nothing() -> None:
    x, weight, _, target = inputs(False, torch.float16)
    options: dict[str, Any] = {"rows": 16, "ignored": -100, "mean": True}
    wider = torch.cat([weight, torch.full((3, FEATURES), 2.0).half()])
    found = []
    for matrix in (weight, wider):
        given = leaves((x, matrix), torch.float16)
        loss = chunked_head(given[0], given[1], None, target, classes=CLASSES, **options)
        found.append((loss, *torch.autograd.grad(loss, given)))
    (left, d_x, d_w), (right, d_x2, d_w2) = found
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(d_x, d_x2, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(d_w, d_w2[:CLASSES], rtol=1e-3, atol=1e-5)
    assert not d_w2[CLASSES:].any()


def test_a_mean_over_no_row_is_nan_and_its_gradient_zero_as_in_pytorch() -> None:
    x, weight, _, target = inputs(False, torch.float16)
    given = leaves((x, weight), torch.float16)
    nothing = torch.full_like(target, -100)
    loss = chunked_head(
        given[0], given[1], None, nothing, classes=CLASSES, rows=16, ignored=-100, mean=True
    )
    assert loss.isnan()
    assert not any(g.any() for g in torch.autograd.grad(loss, given))


def test_only_what_is_asked_for_is_differentiated() -> None:
    x, weight, _, target = inputs(False, torch.float16)
    x.requires_grad_()
    loss = chunked_head(x, weight, None, target, classes=CLASSES, rows=16, ignored=-100, mean=True)
    assert sum(t is not None for t in loss.grad_fn.saved_tensors) == 2
    (gradient,) = torch.autograd.grad(loss, [x])
    assert gradient.any()


def test_a_small_probability_is_not_lost() -> None:
    """Each class has a probability of 2**-26 and less, below the smallest FP16 number."""
    x = torch.ones(8, 1).half()
    weight = torch.full((40, 1), -20.0).half()
    weight[0] = 0.0
    weight.requires_grad_()
    target = torch.zeros(8, dtype=torch.int64)
    loss = chunked_head(x, weight, None, target, classes=40, rows=8, ignored=-100, mean=True)
    (gradient,) = torch.autograd.grad(loss, [weight], torch.tensor(2.0**16))
    truth = weight.detach().double().requires_grad_()
    whole = nn.functional.cross_entropy(x.double() @ truth.t(), target)
    (expected,) = torch.autograd.grad(whole, [truth], torch.tensor(2.0**16).double())
    assert float(expected[1] / 2.0**16) < 2.0**-26 < float(expected[1])
    torch.testing.assert_close(gradient[1:].double(), expected[1:], rtol=0.25, atol=0.0)


def test_a_weight_gradient_beyond_fp16_overflows_only_with_the_scale() -> None:
    x = torch.full((4096, 1), 60.0).half()
    weight = torch.zeros(2, 1).half().requires_grad_()
    target = torch.zeros(4096, dtype=torch.int64)
    loss = chunked_head(x, weight, None, target, classes=2, rows=4096, ignored=-100, mean=True)
    assert torch.finfo(torch.float16).max < 4096 * 60 * 0.5 * SHIFT
    (gradient,) = torch.autograd.grad(loss, [weight], torch.tensor(8.0))
    assert gradient.flatten().tolist() == [-240.0, 240.0]


def test_on_cuda_the_tensor_core_hands_the_weight_gradient_over_in_fp32() -> None:
    mode, cuda = fake_mode(), torch.device("cuda:0")
    left = fake_like(mode, (64, 32), torch.float16, cuda)
    right = fake_like(mode, (32, 16), torch.float16, cuda)
    with torch.no_grad():
        graph = record(lambda a, b: (wide_product(a, b),), [left, right], mode).graph
    (node,) = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.dtype)
    assert node.meta["val"].dtype is torch.float32
