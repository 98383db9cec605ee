"""Checks of values in a program that only raise or warn: no graph needs to hold them.

`torch.distributions`, losses and users' own code look at their arguments: ``if (x < 0).any():
raise``, ``assert mask.all()``. In eager PyTorch such a line waits for the device at each step. The
program runs on the example batch without an error, so its checks pass there; the captured graph
takes the same way, and does not check again.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private.ops import is_higher_order, mutated_inputs
from mpcompile.torch_private.tracing import truth_answered

_ATEN = torch.ops.aten
_ASSERTS_TENSOR = (_ATEN._assert_async.default, _ATEN._assert_async.msg)
_ASSERTS_NUMBER = _ATEN._assert_scalar.default
_READS = (_ATEN._local_scalar_dense.default, _ATEN.item.default)

_CONSTRAINTS = str(Path("torch", "distributions", "constraints.py"))
"""Functions of this file return what validation then raises for."""

_SPEAKS = frozenset(("warn", "warning", "warning_once", "print", "info", "debug"))


def without_value_checks() -> AbstractContextManager[None]:
    """Answer the question for a tensor's truth where one answer only raises or warns."""
    return truth_answered(passing)


def passing(frame: FrameType) -> bool | None:
    """Return the truth with which the check that a frame runs now passes; None: it is no check."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    here = [s for s in _statements(file) if s.lineno <= line <= (s.test.end_lineno or s.lineno)]
    innermost = max((statement.lineno for statement in here), default=0)
    answers: set[bool] = set()
    for statement in here:
        passes = _passes(statement, file.endswith(_CONSTRAINTS))
        if passes is not None and statement.lineno == innermost:
            parts = _parts(statement.test, passes)
            answers |= {truth for part, truth in parts if _may_be_tensor(part, frame)}
    return answers.pop() if len(answers) == 1 else None


def drop_value_checks(graph: fx.Graph) -> None:
    """Remove the assertions about values, which `torch.export` writes into a graph.

    Assertions about sizes stay: torch reasons with them.
    """
    for node in reversed(list(graph.nodes)):
        if node.target in _ASSERTS_TENSOR or (
            node.target is _ASSERTS_NUMBER and _reads_values(node)
        ):
            _erase(node)


def _erase(node: fx.Node) -> None:
    """Erase a node, and all that only it reads; the graph may still have ops that write."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        kept = source.op != "call_function" or is_higher_order(source) or mutated_inputs(source)
        if not (kept or source.users):
            _erase(source)


def _reads_values(node: fx.Node) -> bool:
    ahead, seen = [node], {node}
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source.target in _READS:
                return True
            if source not in seen and not isinstance(source.meta.get("val"), torch.Tensor):
                seen.add(source)
                ahead.append(source)
    return False


@lru_cache(maxsize=64)
def _statements(file: str) -> tuple[ast.If | ast.Assert, ...]:
    """Return the conditions of a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.If | ast.Assert))


def _passes(statement: ast.If | ast.Assert, returns: bool) -> bool | None:
    """Return the truth of its condition with which a statement only goes on.

    Args:
        statement: the statement.
        returns: whether a return out of the statement is the end of a check, too.
    """
    if isinstance(statement, ast.Assert):
        return True
    ends, other_ends = _ends(statement.body, returns), _ends(statement.orelse, returns)
    return None if ends == other_ends else other_ends


def _ends(body: Sequence[ast.stmt], returns: bool) -> bool:
    """Whether a block raises in any case, or only says something."""
    if body and isinstance(body[-1], (ast.Raise, ast.Return) if returns else ast.Raise):
        return True
    return bool(body) and all(isinstance(item, ast.Expr) and _says(item.value) for item in body)


def _says(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return isinstance(value, ast.Constant)
    name = value.func
    return (isinstance(name, ast.Attribute) and name.attr in _SPEAKS) or (
        isinstance(name, ast.Name) and name.id in _SPEAKS
    )


def _parts(test: ast.expr, wanted: bool) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the parts of a condition, and the truth of each that makes for the wanted truth."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _parts(test.operand, not wanted)
    elif isinstance(test, ast.BoolOp):
        for part in test.values:
            yield from _parts(part, wanted)
    else:
        yield test, wanted


def _may_be_tensor(part: ast.expr, frame: FrameType) -> bool:
    """Whether a part of a condition may be a tensor; names and attributes are looked up."""
    if isinstance(part, ast.Constant):
        return False
    missing = object()
    value = _looked_up(part, frame, missing)
    return value is missing or isinstance(value, torch.Tensor)


def _looked_up(part: ast.expr, frame: FrameType, missing: object) -> Any:
    if isinstance(part, ast.Name):
        return frame.f_locals.get(part.id, frame.f_globals.get(part.id, missing))
    if isinstance(part, ast.Attribute):
        holder = _looked_up(part.value, frame, missing)
        if holder is missing or not hasattr(holder, "__dict__"):
            return missing
        return vars(holder).get(part.attr, missing)
    return missing
