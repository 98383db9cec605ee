"""What a step was compiled from: everything that its capture can read and that can change later."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeAlias

import torch

from mpcompile.program.proof.held import Held
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.program.proof.users_code import is_followed
from mpcompile.step.ways import Way
from mpcompile.torch_private.modules import hooks_of

Facts: TypeAlias = tuple[tuple[str, Any], ...]
"""Pairs of a place, as a person writes it, and a `token` of what is there."""

_PLAIN = (type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.layout)
_NUMBERS = (float, complex)
_ATOMS = (*_PLAIN, *_NUMBERS, enum.Enum)


INPUT = "an input from now on"
"""What the token of a number says that is an input of the graphs."""


class Same:
    """A token of an object that counts by identity; it keeps the object alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"another {type(self.value).__name__}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A token of a container or of an object whose content has places of its own."""

    name: str
    content: Any = None

    def __repr__(self) -> str:
        return f"another {self.name}"


@dataclass(frozen=True, slots=True)
class Number:
    """A token of a float: by all its bits, so that NaN is itself and -0.0 is not 0.0."""

    kind: type
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a step's graphs depend on beside the shapes of the batch.

    Attributes:
        layout: parameters and buffers by identity, and what the optimizer trains: these decide
            where the weights and their state are stored.
        modes: whether each module is in training mode.
        program: all the rest.
    """

    layout: Facts
    modes: Facts
    program: Facts

    def on_way(self, way: Way) -> Situation:
        """Return what counts for a program in pieces: it runs itself, so Dynamo sees the rest."""
        return Situation((*self.layout, ("the way of the program", way)), (), ())

    def facts(self) -> Facts:
        """Return all facts."""
        return self.layout + self.modes + self.program


def is_atom(value: Any) -> bool:
    """Whether a value counts by its value alone."""
    return isinstance(value, _ATOMS)


def token(value: Any) -> Any:
    """Return what of a value counts: two values with equal tokens make the same graph.

    The elements of containers, the attributes of the user's objects, and the closures of functions
    have places of their own.
    """
    if isinstance(value, enum.Enum):
        return type(value), value.name
    if isinstance(value, _NUMBERS):
        return Number(type(value), repr(value))
    if isinstance(value, bool | int):
        return Number(type(value), repr(value))
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor | torch.nn.Module):
        return Same(value)
    if isinstance(value, FunctionType):
        return Kind("function", Same(value.__code__))
    if isinstance(value, MethodType):
        return Kind("method", (token(value.__func__), Same(value.__self__)))
    if isinstance(value, partial):
        return Kind("partial", len(value.args))
    if isinstance(value, set | frozenset):
        return Kind(type(value).__name__, frozenset(map(token, value)))
    if isinstance(value, dict):
        return Kind(type(value).__name__, tuple(map(token, value)))
    if isinstance(value, list | tuple | deque):
        return Kind(type(value).__name__, len(value))
    if is_followed(type(value)):  # type: ignore[arg-type]
        return Kind(type(value).__name__)
    return Same(value)


def situation_of(
    found: Surroundings,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    numbers: Container[str] = (),
) -> Situation:
    """Describe what a step would be compiled from now.

    Args:
        found: what the program can read.
        model: the model.
        optimizer: the step's optimizer.
        numbers: the places of the numbers whose values do not count, because they are inputs.
    """
    own = {id(value) for value in (*model.parameters(), *model.buffers())}
    members = {id(value) for group in optimizer.param_groups for value in group["params"]}
    layout: list[tuple[str, Any]] = []
    modes: list[tuple[str, Any]] = []
    program: list[tuple[str, Any]] = []
    for item in found.held:
        is_input = item.path in numbers
        what = _token_without(item.value, found.skipped.get(id(item.value)))
        fact = item.path, Number(type(item.value), INPUT) if is_input else what
        if item.key == "training" and _is_mode(item):
            modes.append(fact)
        else:
            (layout if id(item.value) in own else program).append(fact)
    for path, tensor in found.tensors:
        needs: tuple[str, Any] = (f"{path}.requires_grad", Number(bool, repr(tensor.requires_grad)))
        (layout if id(tensor) in members else program).append(needs)
        hooks = tuple(map(Same, hooks_of(tensor)))
        if hooks:
            program.append((f"the hooks on {path}", hooks))
    for index, group in enumerate(optimizer.param_groups):
        for position, value in enumerate(group["params"]):
            place = f"parameter {position} of the optimizer's group {index}"
            layout.append((place, (Same(value), value.requires_grad)))
    program += list(settings())
    modes.sort(key=lambda fact: fact[0].count("."))  # a module before its parts
    return Situation(tuple(layout), tuple(modes), tuple(program))


def _token_without(value: Any, skipped: set[Any] | None) -> Any:
    """Return the token of a value; of a dictionary without the keys that are not looked at."""
    if not skipped or not isinstance(value, dict):
        return token(value)
    return Kind(type(value).__name__, tuple(token(key) for key in value if key not in skipped))


def _is_mode(item: Held) -> bool:
    return isinstance(item.holder, dict) and "_modules" in item.holder


def settings() -> Iterator[tuple[str, Any]]:
    """Yield the global settings of torch that a capture depends on."""
    for kind in ("cpu", "cuda"):
        on = torch.is_autocast_enabled(kind)
        yield f"autocast on {kind}", token(str(torch.get_autocast_dtype(kind)) if on else "off")
    yield "the default dtype", torch.get_default_dtype()
    strict = torch.are_deterministic_algorithms_enabled()
    yield "torch.use_deterministic_algorithms", token(strict)


def differences(before: Situation, after: Situation) -> list[str]:
    """Return how two situations differ, a sentence a fact.

    First come numbers that are inputs now, then values, then identities.
    """
    old, new = _by_place(before.facts()), _by_place(after.facts())
    inputs: list[str] = []
    values: list[str] = []
    others: list[str] = []
    for place, now in new.items():
        if place not in old:
            others.append(f"{place} is new")
        elif old[place] != now:
            plain = not any(isinstance(item, Same | Kind | tuple) for item in (old[place], now))
            said = f"{place} is {now!r}, was {old[place]!r}" if plain else f"{place} is {now!r}"
            is_input = isinstance(now, Number) and now.text == INPUT
            (inputs if is_input else values if plain else others).append(said)
    others += [f"{place} is gone" for place in old if place not in new]
    return inputs + values + others


def changed_numbers(before: Situation, after: Situation) -> list[str]:
    """Return the places of the numbers that differ between two situations."""
    old, new = _by_place(before.program), _by_place(after.program)

    def is_number(value: Any) -> bool:
        number = isinstance(value, Number) and value.kind is not bool
        return number and value.text != INPUT

    return [
        place
        for place, now in new.items()
        if is_number(now) and is_number(old.get(place)) and old[place] != now
    ]


def _by_place(facts: Facts) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for place, what in facts:
        number = 2
        name = place
        while name in found:
            name = f"{place} ({number})"
            number += 1
        found[name] = what
    return found


def summary(said: list[str]) -> str:
    """Return a list of differences as one short text."""
    if not said:
        return "tensors of the program have other memory"
    rest = len(said) - 1
    return said[0] + (f", and {rest} more" if rest > 0 else "")


Loss: TypeAlias = Callable[..., Any] | None
