"""Text that a program writes: it appears once while a step is compiled, and is said."""

# ruff: noqa: T201, T203

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pprint import pprint
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, SideEffect, TrainStep

LOG = logging.getLogger("a program")


def compiled(does: Callable[[torch.Tensor], Any], **options: Any) -> tuple[TrainStep, list[str]]:
    """Compile a program that does something; return what is said of it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        hidden = model(x)
        does(hidden)
        value: torch.Tensor = hidden.square().mean()
        return value

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = mpcompile.compile(model, loss, optimizer, (torch.ones(3, 4),), **options)
    return step, [str(item.message) for item in caught if item.category is SideEffect]


def prints(hidden: torch.Tensor) -> None:
    print("shape", tuple(hidden.shape))


def writes(hidden: torch.Tensor) -> None:
    sys.stdout.write(f"shape {tuple(hidden.shape)}\n")


def prints_pretty(hidden: torch.Tensor) -> None:
    pprint(("shape", tuple(hidden.shape)))


@pytest.mark.parametrize("does", [prints, writes, prints_pretty])
@pytest.mark.parametrize("verify", [True, False])
def test_a_text_appears_once(
    does: Callable[[torch.Tensor], Any], verify: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout, sys.stderr, logging.Logger.handle
    step, said = compiled(does, verify=verify)
    assert (sys.stdout, sys.stderr, logging.Logger.handle) == before
    assert capsys.readouterr().out.count("shape") == 1
    (one,) = said
    assert one.startswith(f"{__file__}:{does.__code__.co_firstlineno + 1}: the program writes text")
    step(torch.ones(3, 4))
    step(torch.ones(5, 4))  # one more graph
    assert capsys.readouterr() == ("", "")


def test_the_text_is_that_of_real_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(print)
    out = capsys.readouterr().out
    assert out.count("tensor(") == 1
    assert "Fake" not in out


def test_a_text_for_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = compiled(lambda hidden: print("here", file=sys.stderr))
    assert capsys.readouterr().err.count("here") == 1
    assert len(said) == 1


def test_a_log_record(caplog: pytest.LogCaptureFixture) -> None:
    def logs(hidden: torch.Tensor) -> None:
        LOG.warning("a shape of %s", tuple(hidden.shape))

    step, said = compiled(logs)
    assert [record.getMessage() for record in caplog.records] == ["a shape of (3, 2)"]
    assert f"{__file__}:{logs.__code__.co_firstlineno + 1}: the program writes text" in said[0]
    step(torch.ones(3, 4))
    assert len(caplog.records) == 1


def test_several_lines_are_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def twice(hidden: torch.Tensor) -> None:
        print("one")
        print("two")
        LOG.error("three")

    _, said = compiled(twice)
    assert capsys.readouterr().out == "one\ntwo\n"
    assert len(said) == 1
    assert "here and in 2 more lines" in said[0]


def test_a_hook_in_backward(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = compiled(lambda hidden: hidden.register_hook(lambda grad: print("backward")) and None)
    assert capsys.readouterr().out == "backward\n"
    assert len(said) == 1


def test_a_warning_is_no_text_of_the_program() -> None:
    _, said = compiled(lambda hidden: warnings.warn("careful", UserWarning, stacklevel=1))
    assert said == []
