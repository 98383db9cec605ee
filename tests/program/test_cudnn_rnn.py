"""Recurrent layers as one op: it computes what PyTorch does, and keeps what an op promises.

cuDNN itself needs a GPU (`tests/gpu`). Here `cudnn_on_cpu` stands in for the ATen ops around it.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from oracles import cudnn_on_cpu

from mpcompile.program.cudnn_rnn import MODES, cudnn_rnn
from mpcompile.torch_private.tensors import FakeTensorMode

STEPS, BATCH, FEATURES, CELLS, LAYERS = 4, 3, 5, 6, 2
KINDS = [*MODES, "projected lstm"]
CASES = list(product(KINDS, (False, True), (False, True), (False, True)))


@pytest.fixture(autouse=True)
def _cudnn() -> None:
    cudnn_on_cpu.install()


def arguments(
    kind: str, biases: bool, batch_first: bool, bidirectional: bool, **where: Any
) -> tuple[Any, ...]:
    """Return the op's arguments, as leaves that require a gradient."""
    mode = MODES[kind.removeprefix("projected ")]
    directions = 1 + bidirectional
    projected = 2 if kind == "projected lstm" else 0
    outputs = projected or CELLS
    rows = (1, 1, 4, 3)[mode] * CELLS
    where = {"dtype": torch.float64, "requires_grad": True, **where}
    weights = []
    for layer in range(LAYERS):
        for _ in range(directions):
            features = FEATURES if layer == 0 else directions * outputs
            shapes: list[tuple[int, ...]] = [(rows, features), (rows, outputs)]
            shapes += [(rows,), (rows,)] if biases else []
            shapes += [(projected, CELLS)] if projected else []
            weights += [torch.randn(shape, **where) for shape in shapes]
    ends = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
    value = torch.randn(*ends, FEATURES, **where)
    hx = torch.randn(LAYERS * directions, BATCH, outputs, **where)
    cx = torch.randn(LAYERS * directions, BATCH, CELLS, **where) if mode == 2 else None
    return value, weights, hx, cx, mode, LAYERS, batch_first, bidirectional


def expected(
    value: torch.Tensor, weights: list[torch.Tensor], hx: torch.Tensor, cx: Any, *options: Any
) -> tuple[torch.Tensor, ...]:
    mode, layers, batch_first, bidirectional = options
    name = next(name for name, number in MODES.items() if number == mode)
    biases = len(weights) // (layers * (1 + bidirectional)) >= 4
    states = hx if cx is None else (hx, cx)
    results: tuple[torch.Tensor, ...] = getattr(torch, name)(
        value, states, weights, biases, layers, 0.0, True, bidirectional, batch_first
    )
    return results


@pytest.mark.parametrize(("kind", "biases", "batch_first", "bidirectional"), CASES)
def test_results_and_gradients_are_those_of_pytorch(
    kind: str, biases: bool, batch_first: bool, bidirectional: bool
) -> None:
    given = arguments(kind, biases, batch_first, bidirectional)
    leaves = [given[0], *given[1], *[state for state in given[2:4] if state is not None]]
    peers = expected(*given)
    found = cudnn_rnn(*given)[: len(peers)]
    seeds = [torch.randn_like(peer) for peer in peers]
    for left, right in zip(found, peers, strict=True):
        torch.testing.assert_close(left, right)
    for left, right in zip(
        torch.autograd.grad(found, leaves, seeds),
        torch.autograd.grad(peers, leaves, seeds),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("used", range(3))
def test_a_result_without_a_gradient_counts_as_zero(used: int) -> None:
    given = arguments("lstm", True, True, False)
    (left,) = torch.autograd.grad(cudnn_rnn(*given)[used].sum(), given[0])
    (right,) = torch.autograd.grad(expected(*given)[used].sum(), given[0])
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("kind", "biases", "batch_first", "bidirectional"), CASES)
def test_fake_results_lie_in_memory_as_real_ones(
    kind: str, biases: bool, batch_first: bool, bidirectional: bool
) -> None:
    """Checks schema, autograd registration, shapes and strides; backward's are below."""
    given = arguments(kind, biases, batch_first, bidirectional)
    op = torch.ops.mpcompile.cudnn_rnn.default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, given, test_utils=tests)
    with torch.no_grad():
        output, hy, cy, reserve = cudnn_rnn(*given)
        back = (output, reserve, output, hy, None if given[3] is None else cy)
        with FakeTensorMode() as mode:
            fake = [[mode.from_tensor(w) for w in v] if isinstance(v, list) else v for v in given]
            fake = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in fake]
            fake_back = [v if v is None else mode.from_tensor(v) for v in back]
            guessed = torch.ops.mpcompile.cudnn_rnn_backward(*fake_back, *fake)
        made = torch.ops.mpcompile.cudnn_rnn_backward(*back, *given)
    for left, right in zip(guessed, made, strict=True):
        assert (left.shape, left.stride(), left.dtype) == (right.shape, right.stride(), right.dtype)


def test_the_weights_stay_where_they_are() -> None:
    given = arguments("gru", True, False, True)
    before = [weight.data_ptr() for weight in given[1]]
    cudnn_rnn(*given)[0].sum().backward()
    assert [weight.data_ptr() for weight in given[1]] == before


def test_a_copied_reserve_is_refused() -> None:
    given = arguments("gru", True, False, False, requires_grad=False)
    output, _, _, reserve = cudnn_rnn(*given)
    with pytest.raises(RuntimeError, match="was copied"):
        torch.ops.mpcompile.cudnn_rnn_backward(output, reserve.clone(), output, None, None, *given)


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of PyTorch with CUDA")
def test_on_fake_cuda_tensors_of_16_bits() -> None:
    with FakeTensorMode():
        options = {"device": "cuda", "dtype": torch.float16, "requires_grad": False}
        given = arguments("projected lstm", True, True, True, **options)
        output, hy, cy, reserve = cudnn_rnn(*given)
        gradients = torch.ops.mpcompile.cudnn_rnn_backward(output, reserve, output, hy, cy, *given)
    assert output.shape == (BATCH, STEPS, 4)
    assert hy.shape == (4, BATCH, 2)
    assert cy.shape == (4, BATCH, CELLS)
    assert [g.shape for g in gradients] == [v.shape for v in (given[0], *given[2:4], *given[1])]
    assert {v.dtype for v in (output, hy, cy, *gradients)} == {torch.float16}
    assert {v.device.type for v in (output, hy, cy, reserve, *gradients)} == {"cuda"}
