"""A loss that returns more than the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programs.small_step import batch, net
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture, TrainStep


def compiled(loss: Any, **options: Any) -> tuple[TrainStep, nn.Module]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return mpcompile.compile(model, loss, optimizer, batch(), **options), model


def rich(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = model(x)
    right = (logits.argmax(1) == y).sum()
    value = nn.functional.cross_entropy(logits, y)
    return value, {"logits": logits, "counts": [right, (y.shape[0], None)], "name": "train"}


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_the_caller_gets_the_users_structure_without_gradients(backend: Any) -> None:
    step, model = compiled(rich, policy=FULL_PRECISION, backend=backend)
    peer = net()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    for seed in range(3):
        value, beside = step(*batch(seed))
        expected, wanted = rich(peer, *batch(seed))
        optimizer.zero_grad()
        torch.autograd.backward(expected)
        optimizer.step()
        torch.testing.assert_close(value, expected.detach())
        assert list(beside) == ["logits", "counts", "name"]
        torch.testing.assert_close(beside["logits"], wanted["logits"].detach(), atol=1e-3, rtol=0)
        assert int(beside["counts"][0]) == int(wanted["counts"][0])
        assert (beside["counts"][1], beside["name"]) == ((12, None), "train")
        assert not beside["logits"].requires_grad
    if backend == "interpreter":
        for left, right in zip(model.parameters(), peer.parameters(), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_returned_in_mixed_precision_is_fp32(accumulate: int) -> None:
    step, _ = compiled(rich, accumulate=accumulate)
    _, beside = step(*batch())
    assert beside["logits"].dtype is torch.float32
    kept = beside["logits"].clone()
    step(*batch(1))
    assert torch.equal(beside["logits"], kept)


def test_a_loss_may_be_returned_twice_and_with_its_input() -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        value = nn.functional.cross_entropy(model(x), y)
        return value, (value, x)

    step, _ = compiled(loss)
    value, (again, x) = step(*batch())
    assert torch.equal(value, again)
    assert torch.equal(x, batch()[0])


def test_a_loss_with_an_empty_second_value_returns_a_pair() -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        return nn.functional.cross_entropy(model(x), y), None

    _, beside = compiled(loss)[0](*batch())
    assert beside is None


def test_auxiliary_results_change_neither_gradients_nor_the_whole_step() -> None:
    step, _ = compiled(rich)
    assert set(step.gradients(*batch())) == set(step._bound._parameters) & set(
        dict(step._model.named_parameters())
    )
    names = step.step_graph.graph.output_node().meta["slots"]
    assert not any(name.startswith("aux") for name in names)


@pytest.mark.parametrize("wrong", [lambda v: (v, v, v), lambda v: [v, v], lambda v: {"loss": v}])
def test_other_shapes_are_refused(wrong: Any) -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        return wrong(nn.functional.cross_entropy(model(x), y))

    with pytest.raises(
        BadInput, match=r"returns . values.*pair of this tensor and any other value"
    ):
        compiled(loss)


def test_a_structure_unknown_to_export_is_refused() -> None:
    class Odd:
        pass

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        return nn.functional.cross_entropy(model(x), y), Odd()

    with pytest.raises((CannotCapture, BadInput)):
        compiled(loss, whole=True)
    step, _ = compiled(loss)  # in pieces, where the program itself makes the object
    assert isinstance(step(*batch())[1], Odd)
