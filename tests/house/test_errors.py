"""An error has typed parts, of which none is empty, and a defect of ours is no user's error."""

from __future__ import annotations

import ast
import pickle

import pytest
import torch
from root import ROOT

from mpcompile import Workload, errors
from mpcompile.errors import BadInput, CheckFailed, CompileError, Defect

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CompileError)
]
CALLS = [
    (path, call)
    for folder in ("mpcompile", "passes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for call in ast.walk(ast.parse(path.read_text()))
    if isinstance(call, ast.Call) and ast.unparse(call.func) in {kind.__name__ for kind in KINDS}
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_may_be_empty(kind: type[CompileError]) -> None:
    for parts in (("",), (" ",), ("what", ""), ("what", None, ""), ("what", "a.py:1", "\n")):
        with pytest.raises(ValueError, match="of an error is empty"):
            kind(*parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_holds_the_parts_that_are_known(kind: type[CompileError]) -> None:
    assert str(kind("it is wrong")) == "it is wrong."
    assert str(kind("it is wrong", fix="mend it")) == "it is wrong; mend it."
    assert str(kind("it is wrong", "a.py:1")) == "a.py:1: it is wrong."
    whole = kind("it is wrong", "a.py:1", "mend it")
    assert str(whole) == "a.py:1: it is wrong; mend it."
    again = pickle.loads(pickle.dumps(whole))  # processes send errors to one another
    assert (type(again), str(again)) == (kind, str(whole))


def test_no_part_is_written_as_an_empty_text() -> None:
    assert len(CALLS) > 200
    for path, call in CALLS:
        parts = [*call.args, *(word.value for word in call.keywords)]
        empty = [part for part in parts if isinstance(part, ast.Constant) and part.value == ""]
        assert not empty, f"{path}:{call.lineno}"


def test_a_defect_is_no_refusal() -> None:
    assert not issubclass(Defect, CompileError)
    assert {kind.exit_code for kind in KINDS} == {1, 2, 3, 4}
    assert (CheckFailed.exit_code, BadInput.exit_code) == (1, 2)


def test_a_workload_without_a_place_has_none() -> None:
    module = torch.nn.Linear(2, 2)
    for place in (None, ""):
        assert Workload(module, (), origin=place).origin is None
