"""Hooks of tensors, parameters and modules are part of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from programs.hooks import (
    BEFORE,
    ON_TENSORS,
    Net,
    backward_of_a_module,
    both,
    complete,
    parameter,
    parameter_clamped,
    squared,
    two_in_order,
)

import mpcompile
from mpcompile import CannotCapture

BATCHES = batches(12, (6, 8), (6, 8))
Tensor = torch.Tensor


@pytest.mark.parametrize("middle", ON_TENSORS)
def test_hooks_of_tensors(middle: Callable[[Any, Tensor], Tensor]) -> None:
    pair = SideBySide(Net(middle), squared, BATCHES[0])
    pair.train(BATCHES)
    assert pair.differing() == []


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("prepare", BEFORE)
def test_hooks_registered_before_compiling(prepare: Callable[[Any], None]) -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=prepare)
    pair.train(BATCHES)
    assert pair.differing() == []


@pytest.mark.parametrize("prepare", [parameter_clamped, backward_of_a_module])
@pytest.mark.parametrize("options", [{"dynamic": True}, {"max_grad_norm": 0.1}])
def test_with_other_options(prepare: Callable[[Any], None], options: dict[str, Any]) -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=prepare, **options)
    if "max_grad_norm" in options:

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(pair.eager.parameters(), 0.1)

        pair.eager_optimizer.register_step_pre_hook(clip)
    pair.train(BATCHES)
    assert pair.distance() < 1e-5


def test_a_hook_of_gradients_with_accumulation() -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=parameter, accumulate=2)
    pair.train(BATCHES)
    assert pair.distance() < 1e-5


def test_inductor_follows_eager_pytorch() -> None:
    pair = SideBySide(Net(two_in_order), squared, BATCHES[0], prepare=both, backend="inductor")
    pair.train(BATCHES)
    assert pair.distance() < 1e-4


def refused(message: str, net: Net, **options: Any) -> str:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match=message) as caught:
        mpcompile.compile(net, squared, optimizer, BATCHES[0], **options)
    return str(caught.value)


def test_a_hook_that_reads_what_the_tensor_makes_is_refused() -> None:
    def middle(net: Net, h: Tensor) -> Tensor:
        result = h.relu()
        mask = result > 0
        h.register_hook(lambda grad: grad * mask)
        return result

    text = refused("reads a tensor that is computed from the hooked one", Net(middle))
    assert "test_hooks.py" in text


def test_a_hook_that_trains_is_refused() -> None:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.sub_(weight.grad, alpha=0.1)
        weight.grad = None

    net = Net()
    net.first.weight.register_post_accumulate_grad_hook(hook)
    refused("first.weight writes to the parameter or drops its gradient", net)


def test_an_old_backward_hook_of_a_module_is_refused() -> None:
    net = Net()
    net.last.register_backward_hook(lambda module, given, made: None)
    refused("the module last has an old backward hook", net)


def test_a_hook_of_complete_gradients_and_accumulation_are_refused() -> None:
    net = Net()
    complete(net)
    refused("complete", net, accumulate=2)
