"""Draws and Python values that a program changes while it is captured."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import CannotCapture, SideEffect
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tensors import is_fake

OWN = random.Random(3)


class Net(nn.Module):
    """A layer, and what a test lets it do."""

    def __init__(self, does: Callable[[Net, torch.Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.does = nn.Linear(2, 2), does
        self.calls = 0
        self.log: list[Any] = []
        self.last: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc(x)
        self.does(self, hidden)
        return hidden


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = model(x)
    return made.pow(2).mean()


def workload(does: Callable[[Any, torch.Tensor], Any], function: Any = loss) -> Workload:
    model = Net(does)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model, (torch.randn(4, 2),), function, optimizer)


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{1 + next(i for i, line in enumerate(lines) if text in line)}"


def draws_python(net: Net, hidden: torch.Tensor) -> None:
    net.fc.weight * random.random()  # drawn from Python


def draws_numpy(net: Net, hidden: torch.Tensor) -> None:
    net.fc.weight * float(np.random.rand())  # drawn from NumPy


def draws_own(net: Net, hidden: torch.Tensor) -> None:
    net.fc.weight * OWN.uniform(0, 1)  # drawn from its own


DRAWS = {
    "Python's random": (draws_python, "# drawn from Python"),
    "NumPy's random": (draws_numpy, "# drawn from NumPy"),
    "the global OWN": (draws_own, "# drawn from its own"),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_refused_with_its_line(name: str) -> None:
    does, text = DRAWS[name]
    subject = workload(does)
    before = random.getstate(), repr(np.random.get_state()), OWN.getstate(), torch.get_rng_state()
    with pytest.raises(CannotCapture) as caught:
        transform(subject)
    assert name in str(caught.value)
    assert caught.value.where == line_of(text)
    after = random.getstate(), repr(np.random.get_state()), OWN.getstate(), torch.get_rng_state()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


def test_a_draw_outside_the_program_is_no_matter() -> None:
    subject = workload(lambda net, hidden: None)
    random.random()
    np.random.rand()
    transform(subject)


def changes_all(net: Net, hidden: torch.Tensor) -> None:
    net.calls += 1  # counted
    net.log.append(hidden)  # appended
    net.last = hidden  # kept


def test_changes_are_undone_and_said_once_with_their_line() -> None:
    subject = workload(changes_all)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transform(subject)
    said = [str(item.message) for item in caught if item.category is SideEffect]
    assert len(said) == 2  # the tensor that is kept is a result of the graph
    for path, text in (("calls", "# counted"), ("log", "# appended")):
        (one,) = [message for message in said if f"model.{path} " in message]
        assert one.startswith(f"{line_of(text)}: ")
    model: Any = subject.model
    assert (model.calls, model.log, model.last) == (0, [], None)


def test_a_recording_hook_keeps_no_fake_tensor() -> None:
    subject = workload(lambda net, hidden: None)
    recorded: list[torch.Tensor] = []
    subject.model.fc.register_forward_hook(  # type: ignore[union-attr]
        lambda module, given, made: recorded.append(made)
    )
    assert subject.loss is not None
    assert subject.optimizer is not None
    with pytest.warns(
        SideEffect, match=r"recorded of a forward hook of model\.fc's closure is changed"
    ):
        step = mpcompile.compile(subject.model, subject.loss, subject.optimizer, subject.batch)
    assert recorded == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(torch.randn(3, 2))
    assert not any(map(is_fake, recorded))


def test_a_capture_that_fails_changes_nothing_either() -> None:
    def breaks(net: Net, hidden: torch.Tensor) -> None:
        net.log.append(hidden)
        if hidden.sum() > 0:
            net.calls += 1

    subject = workload(breaks)
    with pytest.raises(CannotCapture):
        transform(subject)
    assert subject.model.log == []


def test_a_program_without_effects_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SideEffect)
        transform(workload(lambda net, hidden: None))


def test_a_mode_that_the_first_run_chooses_stays_and_is_no_side_effect() -> None:
    """A model of Hugging Face sets ``config.problem_type`` so in its first run."""

    def chooses(net: Any, hidden: torch.Tensor) -> None:
        if net.last is None:
            net.last = "two columns" if hidden.shape[1] == 2 else "more"

    subject = workload(chooses)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SideEffect)
        transform(subject)
    model: Any = subject.model
    assert model.last == "two columns"


def test_a_mode_that_each_run_changes_is_said() -> None:
    def toggles(net: Any, hidden: torch.Tensor) -> None:
        net.last = None if net.last == "odd" else "odd"

    subject = workload(toggles)
    with pytest.warns(SideEffect, match=r"model\.last is changed"):
        transform(subject)
    model: Any = subject.model
    assert model.last is None


def test_a_layer_of_torch_may_keep_its_own_tensor() -> None:
    """An old spectral norm sets ``weight`` anew in each forward pass."""
    subject = workload(lambda net, hidden: None)
    subject.model.fc = nn.utils.spectral_norm(nn.Linear(2, 2))
    subject = replace(subject, optimizer=torch.optim.SGD(subject.model.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SideEffect)
        transform(subject)


def test_a_number_of_a_layer_that_the_program_changes_is_said() -> None:
    def anneals(net: Net, hidden: torch.Tensor) -> None:
        net.fc.scale = len(net.log) + 1.5  # type: ignore[assignment]

    with pytest.warns(SideEffect, match=r"model\.fc\.scale is changed"):
        transform(workload(anneals))
