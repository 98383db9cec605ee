"""Where the user's code holds tensors: on a context, in a closure, in a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import CellType, MethodType
from typing import Any

import torch

from mpcompile.torch_private.own_derivatives import own_tensors


class Place:
    """Where the user's code holds a tensor: a key of a container, or a closure's cell."""

    def __init__(self, holder: Any, key: Any) -> None:
        self._holder, self._key = holder, key

    @property
    def value(self) -> Any:
        """The tensor."""
        held = self._holder
        return held.cell_contents if isinstance(held, CellType) else held[self._key]

    def put(self, value: torch.Tensor) -> None:
        """Put another tensor there."""
        if isinstance(self._holder, CellType):
            self._holder.cell_contents = value
        else:
            self._holder[self._key] = value


@contextmanager
def in_place_of(places: Sequence[Place], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let the user's code find these tensors where it held those of the capture."""
    before = [place.value for place in places]
    for place, value in zip(places, values, strict=True):
        place.put(value)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.put(value)


def tensors_in(holder: dict[Any, Any] | list[Any], depth: int) -> list[Place]:
    """Find the tensors in a container; tuples in it become lists, to which one can write."""
    found: list[Place] = []
    pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for key, value in pairs:
        if isinstance(value, torch.Tensor):
            found.append(Place(holder, key))
        elif type(value) is tuple and depth and _holds_tensor(value, depth):
            holder[key] = inner = list(value)
            found += tensors_in(inner, depth - 1)
        elif type(value) in (list, dict) and depth:
            found += tensors_in(value, depth - 1)
        elif isinstance(value, torch.nn.Module):
            found += tensors_of_module(value)
        elif depth and (hasattr(value, "__closure__") or isinstance(value, partial | MethodType)):
            found += tensors_of(value)
    return found


def tensors_of_module(module: torch.nn.Module) -> list[Place]:
    """Find the parameters and buffers of a module and the modules inside it."""
    found: list[Place] = []
    for each in module.modules():
        parameters, buffers = own_tensors(each)
        found += tensors_in(parameters, depth=0) + tensors_in(buffers, depth=0)
    return found


def _holds_tensor(values: tuple[Any, ...], depth: int) -> bool:
    return any(
        isinstance(value, torch.Tensor)
        or (type(value) is tuple and depth > 0 and _holds_tensor(value, depth - 1))
        or type(value) in (list, dict)
        for value in values
    )


def tensors_of(function: Any) -> list[Place]:
    """Find the tensors in a function's closure, in its object and in its bound arguments."""
    if isinstance(function, partial):
        inner = tensors_in(function.keywords, depth=2)
        return [*tensors_of(function.func), *inner]
    found: list[Place] = []
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        found += tensors_of_module(owner)
    elif owner is not None and hasattr(owner, "__dict__"):
        found += tensors_in(owner.__dict__, depth=2)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if isinstance(value, torch.Tensor):
            found.append(Place(cell, None))
        elif type(value) in (list, dict):
            found += tensors_in(value, depth=2)
        elif isinstance(value, torch.nn.Module):
            found += tensors_of_module(value)
        elif hasattr(value, "__closure__") or isinstance(value, partial | MethodType):
            found += tensors_of(value)
    return found


def name_of(hook: Any) -> str:
    """Return the name of a hook, for people."""
    return getattr(hook, "__name__", type(hook).__name__)


def line_of(hook: Any) -> str | None:
    """Return ``file:line`` of a hook's definition, or None."""
    code = getattr(hook, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else None
