"""Which conditions are checks that only raise or warn, and which of their answers passes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcompile.program.tracing.value_checks import passing, without_value_checks
from mpcompile.program.workload import module_at

CASES = {
    "if x: raise ValueError": False,
    "if not x: raise ValueError": True,
    "assert x": True,
    "assert not x, 'text'": False,
    "if x or y: raise ValueError": False,
    "if flag and not x: raise ValueError": True,
    "if not (x and y): raise ValueError": True,
    "if x:\n        warnings.warn('large')": False,
    "if x:\n        print('large')\n        logger.warning_once('large')": False,
    "if x:\n        pass\n    else:\n        raise ValueError": True,
    "if flag:\n        pass\n    elif x:\n        raise ValueError": False,
    "if (\n        not x\n        and flag\n    ):\n        raise ValueError": True,
    # These change what the program computes.
    "if x: y = 1": None,
    "y = 1 if x else 2": None,
    "while x: break": None,
    "if x:\n        y = 1\n        print('large')": None,
    "if x:\n        raise ValueError\n    else:\n        raise KeyError": None,
    "if x or not y: raise ValueError": None,
    "assert x; assert not y": None,
}


class Asked(torch.Tensor):
    """Tells what its check would be answered."""

    answer: bool | None = None

    def __bool__(self) -> bool:
        Asked.answer = passing(sys._getframe(1))
        return False


def function_of(text: str, folder: Path) -> Callable[..., Any]:
    file = folder / "checked.py"
    file.write_text(f"import warnings\n\n\ndef check(x, y, flag, logger=None):\n    {text}\n")
    check: Callable[..., Any] = module_at(file).check
    return check


@pytest.mark.parametrize("text", sorted(CASES))
def test_a_check_is_answered_so_that_it_passes(text: str, tmp_path: Path) -> None:
    # `linecache` would remember the text of an earlier case under the same path.
    check = function_of(text, tmp_path)
    value = torch.ones(()).as_subclass(Asked)
    Asked.answer = None
    for flag in (True, False) if "elif" in text else (True,):
        with suppress(ValueError, KeyError, AssertionError, AttributeError):
            check(value, value, flag)
    assert Asked.answer is CASES[text]


def test_a_check_passes_inside_and_the_class_is_as_before(tmp_path: Path) -> None:
    check = function_of("assert x, 'not true'", tmp_path)
    with without_value_checks():
        check(torch.tensor(False), None, None)
    with pytest.raises(AssertionError):
        check(torch.tensor(False), None, None)
    assert "__bool__" not in vars(torch.Tensor)
