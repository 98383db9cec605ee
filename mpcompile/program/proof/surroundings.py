"""What a program can read beside its batch: attributes, closures, defaults and globals.

The walk begins at the model and the loss. Attributes of torch's own modules count all; attributes
of the user's modules and objects count if some code that was reached names them, because a module
holds much bookkeeping that its forward pass never reads.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from mpcompile.program.proof.held import GONE, Held, Holder, Path, elements, look
from mpcompile.program.proof.users_code import (
    codes_in,
    is_class_value,
    is_followed,
    is_torch_module,
    is_users_class,
    is_users_code,
    is_users_module,
    slots_of,
)
from mpcompile.torch_private.modules import HOOKS, INTERNAL, MEMBERS, hooks_of

DEPTH = 8
"""How many containers and objects inside each other are followed."""
LARGE = 1000
"""Elements of a longer container are not followed: it holds data."""
MOST = 5000
"""The most elements of containers and objects that are followed."""
GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)
"""Types whose state changes with each draw."""

_ATOMS = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)
_MOST_ATOMS = frozenset({type(None), bool, int, float, str})
"""Most values are one of these, and a set is quicker than ten types."""
_NOT_CALLED = {"__init__", "__new__", "__repr__", "__str__", "__reduce__", "__getstate__"}
_CALLED = {"forward", "backward", "setup_context", "jvp"}


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """All that a program can read beside its batch.

    Attributes:
        held: each value with its place.
        holders: each container, cell and object whose content can change.
        tensors: each tensor once, with the first place that holds it.
        generators: each random generator, too.
        skipped: by the id of what holds them, the keys that were not looked at.
    """

    held: list[Held]
    holders: list[Holder]
    tensors: list[tuple[str, torch.Tensor]]
    generators: list[tuple[str, Any]]
    skipped: Mapping[int, set[Any]] = field(default_factory=dict)


def held_values(model: torch.nn.Module, loss: Callable[..., Any] | None) -> list[Held]:
    """Return what the program ``loss(model, *batch)`` can read beside its batch."""
    return surroundings(model, loss).held


def surroundings(
    model: torch.nn.Module, loss: Callable[..., Any] | None, skip: Container[tuple[int, Any]] = ()
) -> Surroundings:
    """Walk over what the program can read; see the module's docstring.

    Args:
        model: the model.
        loss: its loss.
        skip: values that are not looked at: the id of what holds each, and its key.
    """
    walk = _Walk(skip)
    walk.module(model, Path("model"))
    if loss is not None:
        walk.root(loss)
    return Surroundings(
        walk.held,
        list(walk.holders.values()),
        list(walk.tensors.values()),
        walk.generators,
        walk.skipped,
    )


def only_tensors(found: Surroundings) -> Surroundings:
    """Return what was found without the values that are no tensors."""
    held = [item for item in found.held if isinstance(item.value, torch.Tensor)]
    hold = {id(item.holder) for item in held}
    holders = [holder for holder in found.holders if id(holder.value) in hold]
    return replace(found, held=held, holders=holders)


class _Walk:
    """One walk; an attribute waits until some code that was reached names it."""

    def __init__(self, skip: Container[tuple[int, Any]]) -> None:
        self._skip = skip
        self.skipped: dict[int, set[Any]] = {}
        self.held: list[Held] = []
        self.holders: dict[tuple[int, frozenset[str] | None], Holder] = {}
        self.tensors: dict[int, tuple[str, torch.Tensor]] = {}
        self.generators: list[tuple[str, Any]] = []
        self._met: dict[int, Any] = {}
        self._classes: set[tuple[type, bool]] = set()
        self._names: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._room = MOST

    def root(self, loss: Callable[..., Any]) -> None:
        """Walk from a loss: a function, a bound method, a partial or a callable object."""
        self._value(loss, Path("loss"), 0)

    def module(self, module: torch.nn.Module, path: Path, depth: int = 0) -> None:
        """Walk over a module, its submodules, hooks, attributes and code."""
        if not self._first(module):
            return
        torchs = type(module).__module__.startswith("torch.")
        self._holder(path, vars(module), None, True, torchs)
        members = vars(module)
        for group in MEMBERS:
            self._holder(path, members[group], None, True, True)
            for name, value in list(members[group].items()):
                self._entry(path.attribute(name), members[group], name, value, depth)
        for group, word in HOOKS.items():
            self._holder(Path(f"the {word}s", f" of {path}"), members[group])
            for key, hook in list(members[group].items()):
                self._entry(Path(f"a {word}", f" of {path}"), members[group], key, hook, depth)
        whole = is_torch_module(type(module))  # type: ignore[arg-type]
        for name, value in list(members.items()):
            if name not in INTERNAL:
                take = partial(self._entry, path.attribute(name), members, name, value, depth)
                if whole or name == "training":
                    take()
                else:
                    self._when(name, take)
        self._class(type(module), path)

    def _value(self, value: Any, path: Path, depth: int) -> None:
        """Follow a value into what it holds."""
        if type(value) in _MOST_ATOMS or isinstance(value, _ATOMS):
            return
        if isinstance(value, torch.Tensor):
            self._tensor(value, path)
        elif isinstance(value, torch.nn.Module):
            self.module(value, path, depth)
        elif isinstance(value, GENERATORS):
            if self._first(value):
                self.generators.append((str(path), value))
        elif isinstance(value, FunctionType | MethodType | partial):
            self._function(value, path, depth)
        elif isinstance(value, type):
            if is_users_class(value) and self._first(value):
                self._class(value, path, made=True)
        elif isinstance(value, dict | list | tuple | deque | set | frozenset):
            self._container(value, path, depth)
        elif is_followed(type(value)):  # type: ignore[arg-type]
            self._object(value, path, depth)

    def _entry(self, path: Path, holder: Any, key: Any, value: Any, depth: int) -> None:
        if (id(holder), key) in self._skip:
            self.skipped.setdefault(id(holder), set()).add(key)
            return
        self.held.append(Held(str(path), holder, key, value))
        self._value(value, path, depth)

    def _tensor(self, tensor: torch.Tensor, path: Path) -> None:
        if id(tensor) not in self.tensors:
            self.tensors[id(tensor)] = str(path), tensor
            for hook in hooks_of(tensor):
                self._value(hook, Path("a hook", f" of {path}"), 0)

    def _container(self, value: Any, path: Path, depth: int) -> None:
        if not self._first(value):
            return
        if not isinstance(value, tuple | frozenset):
            self._holder(path, value)
        if isinstance(value, set | frozenset):
            return
        if len(value) > min(LARGE, self._room) or depth > DEPTH:
            return
        self._room -= len(value)
        pairs = dict.items(value) if isinstance(value, dict) else enumerate(elements(value))
        for key, item in list(pairs):
            self._entry(path.item(key), value, key, item, depth + 1)

    def _object(self, value: Any, path: Path, depth: int) -> None:
        if depth > DEPTH or not self._first(value):
            return
        members = getattr(value, "__dict__", None)
        if isinstance(members, dict):
            self._holder(path, members, attributes=True)
            for name, item in list(members.items()):
                self._limited(path.attribute(name), members, name, item, depth + 1)
        slots = frozenset(slots_of(type(value)))
        if slots:
            self._holder(path, value, slots, True)
            for name in slots:
                if (item := look(value, name)) is not GONE:
                    self._limited(path.attribute(name), value, name, item, depth + 1)
        self._class(type(value), path)

    def _limited(self, path: Path, holder: Any, name: str, value: Any, depth: int) -> None:
        self._room -= 1
        if self._room > 0:
            self._when(name, partial(self._entry, path, holder, name, value, depth))

    def _class(self, kind: type, path: Path, made: bool = False) -> None:
        """Walk over a class of the user's: values that its code names, and methods."""
        for owner in kind.__mro__:
            new = (owner, made) not in self._classes
            if not new or not is_users_class(owner) or issubclass(owner, enum.Enum):
                continue
            self._classes.add((owner, made))
            values = frozenset(
                name for name, value in vars(owner).items() if is_class_value(name, value)
            )
            self._holder(path, owner, values, True)
            for name, value in list(vars(owner).items()):
                if name in values:
                    entry = partial(self._entry, path.attribute(name), owner, name, value, 1)
                    self._when(name, entry)
                    continue
                if isinstance(value, property):
                    value = value.fget
                value = getattr(value, "__func__", value)
                if not isinstance(value, FunctionType):
                    continue
                follow = partial(self._value, value, Path(name), 0)
                dunder = name.startswith("__") and (made or name not in _NOT_CALLED)
                if dunder or name in _CALLED:
                    follow()
                else:
                    self._when(name, follow)

    def _function(self, value: Any, path: Path, depth: int) -> None:
        if isinstance(value, partial):
            if self._first(value):
                for key, item in [*enumerate(value.args), *value.keywords.items()]:
                    holder = value.args if isinstance(key, int) else value.keywords
                    place = Path(f"argument {key}", f" of {path}")
                    self._entry(place, holder, key, item, depth + 1)
                self._value(value.func, path, depth)
            return
        if isinstance(value, MethodType):
            self._value(value.__self__, path.attribute("__self__"), depth)
            value = value.__func__
        if not self._first(value):
            return
        name = str(path) if value.__name__ == "<lambda>" else value.__name__
        users = is_users_code(value)
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if (item := look(cell, "cell_contents")) is GONE:
                continue
            place = Path(variable, f" of {name}'s closure")
            if users:
                self._holder(place, cell)
                self._entry(place, cell, "cell_contents", item, depth + 1)
            else:  # a decorator's, around what may be the user's
                self._value(item, place, depth + 1)
        if not users:
            return
        self._defaults(value, name, depth)
        codes = codes_in(value.__code__)
        self._globals(value.__globals__, frozenset(n for code in codes for n in code.co_names))
        for code in codes:
            self._named(code.co_names)
            self._named(c for c in code.co_consts if isinstance(c, str) and c.isidentifier())

    def _defaults(self, function: FunctionType, name: str, depth: int) -> None:
        self._holder(Path("the defaults", f" of {name}"), function)
        defaults, code = function.__defaults__ or (), function.__code__
        named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        for position, (variable, item) in enumerate(zip(named, defaults, strict=True)):
            place = Path(f"the default {variable}", f" of {name}")
            self._entry(place, defaults, position, item, depth + 1)
        for variable, item in (function.__kwdefaults__ or {}).items():
            place = Path(f"the default {variable}", f" of {name}")
            self._entry(place, function.__kwdefaults__, variable, item, depth + 1)

    def _globals(self, space: dict[str, Any], names: frozenset[str]) -> None:
        found = {name: space[name] for name in names if name in space}
        self._holder(Path("the global"), space, frozenset(found))
        for name, value in sorted(found.items()):
            if isinstance(value, ModuleType):
                if is_users_module(value):
                    self._from_module(value, name, names)
            elif not isinstance(value, FunctionType | type):
                self._entry(Path(f"the global {name}"), space, name, value, 0)
            else:
                self._value(value, Path(name), 0)

    def _from_module(self, module: ModuleType, name: str, names: frozenset[str]) -> None:
        space = vars(module)
        found = {key: space[key] for key in names if key in space}
        self._holder(Path(name), space, frozenset(found), True)
        for key, value in sorted(found.items()):
            if isinstance(value, FunctionType | type):
                self._value(value, Path(key), 0)
            elif not isinstance(value, ModuleType):
                self._entry(Path(f"{name}.{key}"), space, key, value, 0)

    def _when(self, name: str, take: Callable[[], None]) -> None:
        if name in self._names:
            take()
        else:
            self._waiting.setdefault(name, []).append(take)

    def _named(self, names: Iterable[str]) -> None:
        new = set(names) - self._names
        self._names |= new
        for name in new:
            for take in self._waiting.pop(name, ()):
                take()

    def _first(self, value: Any) -> bool:
        """Whether a value is met for the first time; it is kept, so its id stays its own."""
        if id(value) in self._met:
            return False
        self._met[id(value)] = value
        return True

    def _holder(
        self,
        path: Path,
        value: Any,
        keys: frozenset[str] | None = None,
        attributes: bool = False,
        state: bool = False,
    ) -> None:
        key = id(value), keys
        if key not in self.holders:
            self.holders[key] = Holder(path, value, keys, attributes, state)
