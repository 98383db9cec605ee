"""The places of a program's values: what holds them, and how a person writes them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpcompile.program.returned import Spot

GONE = object()
"""What `look` returns if there is nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A value that a program can read, and the place that holds it.

    Attributes:
        path: its place as a person writes it: ``model.drop.p``, ``the global TEMPERATURE``.
        holder: a dict, list, tuple, deque, cell, function, class or object with slots.
        key: key or index; for a cell, function, class or object the name of the attribute.
        value: the value at the time of the walk.
    """

    path: str
    holder: Any
    key: Any
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """A container, cell, function, class or object, also an empty one.

    Attributes:
        path: its place as a person writes it.
        value: the holder itself; for an object its ``__dict__`` if it has one.
        keys: the only keys that count, of a module's globals; None: all.
        attributes: whether its keys are read as attributes, not as items.
        state: whether it holds parameters, buffers or submodules, or is a layer of torch.
    """

    path: Path
    value: Any
    keys: frozenset[str] | None = None
    attributes: bool = False
    state: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """A place as a person writes it: ``options.beta`` `` of loss's closure``."""

    name: str
    of: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.of}"

    def attribute(self, name: str) -> Path:
        """Return the place of an attribute."""
        return Path(f"{self.name}.{name}", self.of)

    def item(self, key: Any) -> Path:
        """Return the place of an item."""
        return Path(f"{self.name}[{key!r}]"[:200], self.of)


def current(item: Held, default: Any = None) -> Any:
    """Return what is at a value's place now; the default if the place is gone."""
    found = look(item.holder, item.key)
    return default if found is GONE else found


def look(holder: Any, key: Any) -> Any:
    """Return what a holder has under a key, or `GONE`."""
    if isinstance(holder, dict):
        return dict.get(holder, key, GONE)
    if isinstance(holder, list | tuple | deque):
        parts = elements(holder)
        return parts[key] if key < len(parts) else GONE
    try:
        return getattr(holder, key, GONE)
    except ValueError:  # an empty cell
        return GONE


def elements(holder: Any) -> Any:
    """Return the elements of a list, tuple or deque, whatever its class makes of reading them."""
    if isinstance(holder, deque):
        return holder
    return list(list.__iter__(holder) if isinstance(holder, list) else tuple.__iter__(holder))


DEFAULTS = ("__defaults__", "__kwdefaults__")
"""The attributes of a function that hold its defaults."""


def place_of(item: Holder, key: Any) -> str:
    """Return the place of what a holder has under a key, as a person writes it."""
    path, holder = item.path, item.value
    if str(path) == "the global":
        return f"the global {key}"
    if hasattr(type(holder), "cell_contents") or key in DEFAULTS:
        return str(path)
    return str(path.attribute(key) if item.attributes else path.item(key))


def put(holder: Any, key: Any, value: Any) -> None:
    """Put a value, or `GONE`, under a key of a dict, cell, function, class or object.

    No code of the user's runs, such as a class's own ``__setattr__``.
    """
    if isinstance(holder, dict):
        kind = OrderedDict if isinstance(holder, OrderedDict) else dict
        if value is GONE:
            kind.pop(holder, key, None)
        else:
            kind.__setitem__(holder, key, value)
    elif value is GONE:
        delattr(holder, key)
    elif isinstance(holder, type):
        setattr(holder, key, value)
    else:
        object.__setattr__(holder, key, value)


def spot_of(item: Holder, key: Any) -> Spot:
    """Name what a holder has under a key so that `holder_of` finds it in a later walk."""
    return Spot(place_of(item, key), str(item.path), key, item.keys is None)


def holder_of(holders: Iterable[Holder], spot: Spot) -> Any:
    """Return what holds a spot now, or None."""
    for item in holders:
        if (
            str(item.path) == spot.holder
            and (item.keys is None) is spot.open
            and (item.keys is None or spot.key in item.keys)
            and place_of(item, spot.key) == spot.path
        ):
            return item.value
    return None
