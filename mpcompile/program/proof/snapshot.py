"""What a program can read, noted before it runs, compared afterwards and put back.

`Snapshot` holds the shallow content of each container, cell and object, `TensorCopies` the values
of tensors. Copies are made at once and not at the first write, because a write through ``.data``
cannot be seen before it happens; so they cost the memory of the tensors once, until released.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import is_
from types import FunctionType
from typing import Any

import torch

from mpcompile.program.proof.held import DEFAULTS, GONE, Holder, Path, elements, look, place_of, put
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.torch_private.tensors import is_fake, set_version, version_of

_EQUAL = (bool, int, float, complex, str, bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A difference between a snapshot and now.

    Attributes:
        path: the place of the value, or of the container whose elements differ.
        key: key, attribute or index of the first element that differs.
        before: its value in the snapshot; `GONE` if it is new.
        after: its present value; `GONE` if it is missing now.
        holder: what holds it, or the generator.
    """

    path: str
    key: Any
    before: Any
    after: Any
    holder: Any

    @property
    def named(self) -> bool:
        """Whether it is an attribute, not an element of a container."""
        return isinstance(self.holder, Holder) and self.holder.attributes

    @property
    def is_state(self) -> bool:
        """Whether a parameter, buffer or submodule was replaced: no side effect, but state.

        So is a tensor that torch keeps on a layer of its own, such as a normed weight.
        """
        held = isinstance(self.holder, Holder) and self.holder.state
        return held and not isinstance(self.after, _EQUAL)


class Snapshot:
    """The content of every container, cell and object, and the state of random generators."""

    def __init__(self, found: Surroundings) -> None:
        self._contents = [(item, _content(item)) for item in found.holders]
        self._drawn = [(path, item, _state(item)) for path, item in found.generators]

    def changes(self) -> list[Change]:
        """Return what differs now."""
        found = [
            change
            for item, before in self._contents
            for change in _differences(item, before, lenient=True)
            if not self._is_copy(change)
        ]
        found += [
            Change(path, None, before, _state(item), item)
            for path, item, before in self._drawn
            if not _same_state(before, _state(item))
        ]
        return found

    def _is_copy(self, change: Change) -> bool:
        """Whether an attribute holds a copy of a container as it was, which `torch.export` makes.

        What the program has written to the container itself is a change of its own.
        """
        if not change.named or type(change.before) is not type(change.after):
            return False
        return any(
            item.value is change.before and _alike(content, change.after)
            for item, content in self._contents
        )

    def probe(self, change: Change) -> Callable[[], bool]:
        """Return a function that says whether a change is there, and looks at nothing else."""
        for item, before in self._contents:
            if item is change.holder:
                return lambda: any(
                    now.path == change.path for now in _differences(item, before, lenient=True)
                )
        return lambda: not _same_state(change.before, _state(change.holder))

    def drawn(self) -> list[str]:
        """Return the places of the generators that have drawn numbers since."""
        return [path for path, item, before in self._drawn if not _same_state(before, _state(item))]

    def restore(self) -> None:
        """Put back everything that differs."""
        for item, before in self._contents:
            if _differences(item, before):
                _put_back(item, before)
        for _, item, before in self._drawn:
            if not _same_state(before, _state(item)):
                _set_state(item, before)


class TensorCopies:
    """The values of tensors, their storage, gradient and whether they require one."""

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._kept = [
            _Kept.of(path, tensor)
            for path, tensor in tensors
            if tensor.layout is torch.strided and not is_fake(tensor) and not tensor.is_inference()
        ]
        self._written: list[_Kept] | None = None

    def set_gradients_aside(self) -> None:
        """Leave no tensor a gradient; `restore` brings them back."""
        for kept in self._kept:
            if kept.grad is not None:
                kept.tensor.grad = None

    def changed(self) -> list[tuple[str, torch.Tensor]]:
        """Return the tensors whose value differs; `restore` looks at no other value then."""
        self._written = [kept for kept in self._kept if kept.is_written()]
        return [(kept.path, kept.tensor) for kept in self._written]

    @property
    def written(self) -> list[tuple[str, torch.Tensor]]:
        """What `changed` has found."""
        return [(kept.path, kept.tensor) for kept in self._written or ()]

    def changed_by_ops(self) -> None:
        """Find the tensors that PyTorch's operations have written, without reading values."""
        self._written = [kept for kept in self._kept if version_of(kept.tensor) != kept.version]

    def restore(self) -> None:
        """Put back storage, values, versions, gradients and whether one is required."""
        if self._written is None:
            self.changed()
        for kept in self._written or ():
            kept.put_back()
        for kept in self._kept:
            kept.put_back_gradient()
        self._written = None


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    path: str
    tensor: torch.Tensor
    storage: torch.Tensor
    value: torch.Tensor
    version: int
    trained: bool
    grad: torch.Tensor | None

    @classmethod
    def of(cls, path: str, tensor: torch.Tensor) -> _Kept:
        storage = tensor.detach()
        grad = tensor.grad if tensor.is_leaf else None
        version = version_of(tensor)
        return cls(path, tensor, storage, storage.clone(), version, tensor.requires_grad, grad)

    def is_written(self) -> bool:
        now = self.tensor.detach()
        if now.data_ptr() != self.storage.data_ptr() or now.shape != self.value.shape:
            return True
        return not _same_numbers(now, self.value)

    def put_back(self) -> None:
        tensor = self.tensor
        with torch.no_grad():
            if tensor.data_ptr() != self.storage.data_ptr() or tensor.shape != self.storage.shape:
                tensor.data = self.storage
            self.storage.copy_(self.value)

    def put_back_gradient(self) -> None:
        tensor = self.tensor
        if version_of(tensor) != self.version:
            set_version(tensor, self.version)
        if tensor.is_leaf:
            if tensor.requires_grad != self.trained:
                tensor.requires_grad_(self.trained)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad


def _same_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    if torch.equal(one, other):
        return True
    floating = one.is_floating_point() or one.is_complex()
    return floating and bool(((one == other) | ((one != one) & (other != other))).all())


def with_optimizer(found: Surroundings, optimizer: torch.optim.Optimizer) -> Surroundings:
    """Add what an optimizer holds, which a hook may step."""
    name = "the optimizer"
    holders = [
        Holder(Path(f"{name}'s state"), optimizer.state),
        Holder(Path(f"{name}'s groups"), optimizer.param_groups),
    ]
    seen = {id(tensor) for _, tensor in found.tensors}
    tensors: list[tuple[str, torch.Tensor]] = []
    for entries in [*optimizer.state.values(), *optimizer.param_groups]:
        holders.append(Holder(Path(f"an entry of {name}"), entries))
        values = [*entries.values(), *entries.get("params", ())]
        for value in values:
            if isinstance(value, torch.Tensor) and id(value) not in seen:
                seen.add(id(value))
                tensors.append((f"a tensor of {name}", value))
    return Surroundings(
        found.held, found.holders + holders, found.tensors + tensors, found.generators
    )


def _content(item: Holder) -> Any:
    holder = item.value
    if item.keys is not None:
        return {key: look(holder, key) for key in item.keys}
    if isinstance(holder, dict):
        return dict(dict.items(holder))  # a class may make something else of reading it
    if isinstance(holder, list | deque):
        return list(elements(holder))
    if isinstance(holder, set):
        return set(holder)
    names = ("cell_contents",) if hasattr(type(holder), "cell_contents") else DEFAULTS
    return {name: look(holder, name) for name in names}


def _differences(item: Holder, before: Any, *, lenient: bool = False) -> list[Change]:
    """Return what differs; with ``lenient`` an attribute may be a copy, as `torch.export` makes."""
    if _is_identical(item, before):
        return []
    now = _content(item)
    if isinstance(before, dict):
        pairs = [(key, value, now.get(key, GONE)) for key, value in before.items()]
        pairs += [(key, GONE, value) for key, value in now.items() if key not in before]
        return [
            Change(place_of(item, key), key, old, new, item)
            for key, old, new in pairs
            if not (_alike(old, new) if lenient else _same(old, new))
        ]
    if isinstance(before, set):
        if before == now:
            return []
        return [Change(str(item.path), None, before, now, item)]
    length = max(len(before), len(now))
    for index in range(length):
        old, new = (part[index] if index < len(part) else GONE for part in (before, now))
        if not _same(old, new):
            return [Change(str(item.path), index, old, new, item)]
    return []


def _is_identical(item: Holder, before: Any) -> bool:
    """Whether a holder has the same objects in the same order; it calls no code of theirs.

    All holders are asked about ten times while a program compiles, and a library's code has
    thousands, most of them functions. So the common kinds come first.
    """
    holder = item.value
    if type(holder) is FunctionType and item.keys is None:
        return (
            holder.__defaults__ is before["__defaults__"]
            and holder.__kwdefaults__ is before["__kwdefaults__"]
        )
    if isinstance(before, dict):
        if not isinstance(holder, dict):
            return all(look(holder, key) is value for key, value in before.items())
        if item.keys is not None:
            now = [dict.get(holder, key, GONE) for key in before]
            return all(map(is_, before.values(), now))
        return len(before) == len(holder) and (
            not before
            or (
                all(map(is_, before, dict.keys(holder)))
                and all(map(is_, before.values(), dict.values(holder)))
            )
        )
    return (
        isinstance(before, list)
        and len(before) == len(holder)
        and all(map(is_, before, elements(holder)))
    )


def _same(one: Any, other: Any) -> bool:
    return one is other or (
        type(one) is type(other) and isinstance(one, _EQUAL) and bool(one == other)
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, or containers of the same elements."""
    if _same(one, other):
        return True
    if type(one) is not type(other) or not isinstance(one, list | tuple | dict | set | deque):
        return False
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(key in other and _alike(value, other[key]) for key, value in one.items())
    return one == other if isinstance(one, set) else all(map(_alike, one, other))


def _put_back(item: Holder, before: Any) -> None:
    holder = item.value
    if isinstance(holder, list):
        list.__setitem__(holder, slice(None), before)
        return
    if isinstance(holder, deque | set):
        holder.clear()
        (holder.extend if isinstance(holder, deque) else holder.update)(before)
        return
    if isinstance(holder, dict) and item.keys is None and list(dict.keys(holder)) != list(before):
        (OrderedDict if isinstance(holder, OrderedDict) else dict).clear(holder)
    for key, value in before.items():
        if look(holder, key) is not value:
            put(holder, key, value)


def _state(generator: Any) -> Any:
    if hasattr(generator, "getstate"):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if hasattr(generator, "setstate"):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return repr(one) == repr(other)
