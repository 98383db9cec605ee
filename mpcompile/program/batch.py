"""A batch as a loader gives it: tensors in order, and the structure they came in.

Graphs take flat tensors. Dictionaries, lists, dataclasses and whatever else is around them belongs
to the structure, with all that is no tensor: ``None``, numbers and strings are constants.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeAlias

import torch

from mpcompile.errors import BadInput
from mpcompile.torch_private.tracing import one_level

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.Size, type, FunctionType),
)


@dataclass(frozen=True)
class Structure:
    """A value whose tensors were taken out; two with the same constants are equal.

    Attributes:
        kind: the type of the value; `torch.Tensor` for each tensor.
        key: of a container its keys or fields, of a constant its value, of a tensor None.
        parts: the structures of a container's parts.
        make: returns a container of the values of its parts.
    """

    kind: type
    key: Any = None
    parts: tuple[Structure, ...] = ()
    make: Callable[[list[Any]], Any] | None = field(default=None, compare=False)

    def filled(self, tensors: Iterator[torch.Tensor]) -> Any:
        """Return the value with these tensors."""
        if self.make is not None:
            return self.make([part.filled(tensors) for part in self.parts])
        return next(tensors) if self.kind is torch.Tensor else self.key


class Batch(tuple[torch.Tensor, ...]):
    """The tensors of a batch, and the structure they came in.

    Attributes:
        structure: of the positional and the named arguments behind the model; None: the tensors
            are the positional arguments.
    """

    structure: Structure | None

    def __new__(cls, tensors: Sequence[torch.Tensor], structure: Structure | None = None) -> Batch:
        """Make a batch of flat tensors."""
        made = super().__new__(cls, tensors)
        made.structure = structure
        return made

    def arguments(self, tensors: Sequence[torch.Tensor]) -> Arguments:
        """Return the positional and named arguments of a batch like this of other tensors."""
        if self.structure is None:
            return tuple(tensors), {}
        args, named = self.structure.filled(iter(tensors))
        return tuple(args), named


def batch_of(given: object, where: str | None = None) -> Batch:
    """Return what a loader gave as a batch.

    Args:
        given: a tuple or list holds the positional arguments of the loss, a mapping its named
            ones; anything else is the only argument.
        where: the user's source position for error messages.

    Raises:
        BadInput: something in it is neither a tensor nor a constant, or no tensor is in it.
    """
    if isinstance(given, Batch):
        return given
    if isinstance(given, tuple | list) and not hasattr(given, "_fields"):
        return of_arguments(tuple(given), {}, where)
    if isinstance(given, Mapping):
        return of_arguments((), dict(given), where)
    return of_arguments((given,), {}, where)


def without_gaps(batch: Batch) -> Batch:
    """Return an example batch whose tensors have memory without gaps and overlaps.

    A part of a larger tensor, or an expanded one, is copied: `torch.export` traces copies, and a
    graph has the strides of what was traced.
    """
    return Batch([_dense(value) for value in batch], batch.structure)


def _dense(value: torch.Tensor) -> torch.Tensor:
    if value.layout is not torch.strided:
        return value
    strides = torch.empty_like(value, device="meta").stride()
    return value if value.stride() == strides else laid_out(value, strides)


def laid_out(value: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Return a tensor in the memory layout of an example; a copy if it has another one."""
    if value.stride() == tuple(strides):
        return value
    copy = value.detach().new_empty_strided(value.shape, strides).copy_(value.detach())
    return copy.requires_grad_(value.requires_grad)


def to_call(given: object, where: str | None = None) -> tuple[Any, ...]:
    """Return what a loader gave as the arguments of a step, behind which no name is needed."""
    batch = batch_of(given, where)
    return batch if batch.structure is None else (batch,)


def structure_of(batch: Sequence[torch.Tensor]) -> Structure | None:
    """Return the structure that tensors came in; None: they are the arguments themselves."""
    return batch.structure if isinstance(batch, Batch) else None


def of_arguments(
    args: tuple[Any, ...], named: Mapping[str, Any], where: str | None = None
) -> Batch:
    """Return the arguments of a loss behind the model as a batch; see `batch_of`."""
    if not named and all(isinstance(value, torch.Tensor) for value in args):
        return Batch(args)
    tensors: list[torch.Tensor] = []
    return Batch(tensors, _taken([list(args), dict(named)], tensors, where))


def _taken(value: Any, tensors: list[torch.Tensor], where: str | None) -> Structure:
    """Return the structure of a value, and append its tensors to a list."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return Structure(torch.Tensor)
    if isinstance(value, _CONSTANTS):
        return Structure(type(value), value)
    opened = one_level(value) or _opened(value)
    if opened is None:
        raise BadInput(
            f"the batch holds an object of type {type(value).__name__}",
            where,
            "give tensors, numbers, strings and None, in tuples, lists, dictionaries and "
            "dataclasses",
        )
    parts, key, make = opened
    return Structure(type(value), key, tuple(_taken(p, tensors, where) for p in parts), make)


def _opened(value: Any) -> tuple[list[Any], Any, Callable[[list[Any]], Any]] | None:
    """Open an object that torch's trees do not know: a dataclass or a mapping."""
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value)]
        empty = copy.copy(value)
        _set_fields(empty, names, [None] * len(names))

        def dataclass_of(parts: list[Any]) -> Any:
            made = copy.copy(empty)
            _set_fields(made, names, parts)
            return made

        return [getattr(value, name) for name in names], tuple(names), dataclass_of
    if isinstance(value, dict | UserDict):  # others may share what they hold with a copy
        keys = list(value)
        hollow = copy.copy(value)
        hollow.update(dict.fromkeys(keys))

        def mapping_of(parts: list[Any]) -> Any:
            made = copy.copy(hollow)
            made.update(zip(keys, parts, strict=True))
            return made

        return [value[key] for key in keys], tuple(keys), mapping_of
    return None


def _set_fields(value: Any, names: Sequence[str], parts: Sequence[Any]) -> None:
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(value, name, part)  # a frozen dataclass has no other way
