"""What can change about a tensor, read for many tensors at once as words of memory.

The check before each call reads three attributes of each weight. From Python this was most of its
time, and torch has no function that reads one of them for many tensors. NumPy gathers their words.

A word is read only while the object around it is alive. The caller holds the tensors. A tensor in
Python names its implementation; only if that is the one of before, and so alive, is it read. It
names its storage, its gradient data and its count of writes; only if these are the ones of before
are they read.

Where the words are is not assumed. It is found on small tensors, by what changes when an attribute
is set, and what is read of each watched tensor is compared with its attributes. If a word is not
found or a value differs, the attributes are read at each call. Found on torch 2.11,
2.13, 2.14.1 and 2.15 with Python 3.11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from mpcompile.torch_private.words import WORD, Words, are_words_known, only, read

_OF_TENSOR, _OF_STORAGE, _OF_GRADIENT, _OF_COUNT = 22, 6, 20, 3
"""How many words of a `TensorImpl`, `StorageImpl`, `AutogradMeta` and `VersionCounter` are looked
at; none of them is smaller."""


@dataclass(frozen=True)
class _Layout:
    """Which word of its object is what; see the classes of the same names in C++.

    Attributes:
        implementation: of a tensor in Python: the address of its `TensorImpl`.
        storage: of a `TensorImpl`: the address of its `StorageImpl`.
        gradient: of a `TensorImpl`: the address of its `AutogradMeta`, or 0.
        version: of a `TensorImpl`: the address of its `VersionCounter`.
        offset: of a `TensorImpl`: the first element in the storage.
        data: of a `StorageImpl`: the address of its memory.
        needs: of an `AutogradMeta`: the word that holds ``requires_grad`` of a leaf.
        needs_mask: the bits of it that do.
        made_by: of an `AutogradMeta`: the words that say which op has made a tensor.
        count: of a `VersionCounter`: the number of writes.
    """

    implementation: int
    storage: int
    gradient: int
    version: int
    offset: int
    data: int
    needs: int
    needs_mask: int
    made_by: tuple[int, ...]
    count: int


def never() -> bool:
    """Say no, as a check does that cannot be made."""
    return False


def watch(tensors: Iterable[torch.Tensor]) -> Callable[[], bool]:
    """Return a check that tensors have the memory and ``requires_grad`` that they have now.

    The check never says yes wrongly. It may say no although the two are unchanged, for example
    because a tensor has got another storage on the same memory. It always says no if the words of a
    tensor cannot be read.
    """
    layout, watched = layout_of_tensors(), list(tensors)
    first = None if layout is None else _implementations(layout, watched)
    if layout is None or first is None:
        return never
    names = layout.storage, layout.gradient, layout.offset
    second = Words([one + WORD * name for one in first.numbers() for name in names])
    found = second.numbers()
    storages, gradients, offsets = found[0::3], found[1::3], found[2::3]
    data = [one + WORD * layout.data for one in dict.fromkeys(storages) if one]
    kinds = (layout.needs, *layout.made_by)
    of_gradients = [one + WORD * kind for one in gradients if one for kind in kinds]
    third = Words(data + of_gradients)
    read = dict(zip(data + of_gradients, third.numbers(), strict=True))

    def needs(gradient: int) -> bool:
        if not gradient:
            return False
        made = any(read[gradient + WORD * kind] for kind in layout.made_by)
        return made or bool(read[gradient + WORD * layout.needs] & layout.needs_mask)

    for tensor, storage, gradient, offset in zip(
        watched, storages, gradients, offsets, strict=True
    ):
        if needs(gradient) != tensor.requires_grad:
            return never
        if tensor.layout is torch.strided and tensor.numel():
            start = read.get(storage + WORD * layout.data)
            if start is None or start + offset * tensor.element_size() != tensor.data_ptr():
                return never
    holds = first.hold, second.hold, third.hold

    def unchanged() -> bool:
        return holds[0]() and holds[1]() and holds[2]()

    return unchanged


class Writes:
    """The writes in place to some tensors that PyTorch counts.

    Args:
        tensors: are kept.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._note()

    def now(self) -> Any:
        """Return a value that is another one after each write."""
        if self._counts is None:
            return [tensor._version for tensor in self._tensors]
        if not (self._first.hold() and self._second.hold()):
            self._note()
            return self.now()
        return self._counts.now()

    def _note(self) -> None:
        """Find the counters of the tensors."""
        self._counts: Words | None = None
        layout = layout_of_tensors()
        first = None if layout is None else _implementations(layout, self._tensors)
        if layout is None or first is None:
            return
        self._first = first
        self._second = Words([one + WORD * layout.version for one in first.numbers()])
        counters = self._second.numbers()
        if not all(counters):
            return
        counts = Words([one + WORD * layout.count for one in counters])
        versions = [tensor._version for tensor in self._tensors]
        if [count % 2**32 for count in counts.numbers()] == versions:
            self._counts = counts


def _implementations(layout: _Layout, tensors: Sequence[torch.Tensor]) -> Words | None:
    """Return the words with which tensors name their implementations; None: it is not so."""
    places = [id(tensor) + WORD * layout.implementation for tensor in tensors]
    words = Words(places, tensors)
    return words if words.numbers() == [one._cdata for one in tensors] else None


@cache
def layout_of_tensors() -> _Layout | None:
    """Return where torch stores what can change about a tensor; None: that was not found."""
    if not are_words_known():
        return None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _find()
    except (AttributeError, LookupError, RuntimeError, TypeError):
        return None


def _find() -> _Layout:
    """Look for each word on tensors of which only that word differs."""
    numbers = torch.from_numpy(np.zeros(16, np.float32))
    storage = numbers.untyped_storage()
    in_storage = read(storage._cdata, _OF_STORAGE)
    offset, version = _find_offset_and_version(numbers)
    tensor = _part(numbers, 3)
    words = _of(tensor)
    at = read(id(tensor), torch.Tensor.__basicsize__ // WORD)
    before = read(words[version], _OF_COUNT)
    tensor.add_(1)
    after = read(words[version], _OF_COUNT)
    count = only(k for k in range(_OF_COUNT) if after[k] == before[k] + 1)
    gradient, needs, mask, made_by = _find_gradient(tensor)
    return _Layout(
        implementation=only(k for k, word in enumerate(at) if word == tensor._cdata),
        storage=only(k for k, word in enumerate(words) if word == storage._cdata),
        gradient=gradient,
        version=version,
        offset=offset,
        data=only(k for k, word in enumerate(in_storage) if word == storage.data_ptr()),
        needs=needs,
        needs_mask=mask,
        made_by=made_by,
        count=count,
    )


def _find_offset_and_version(numbers: torch.Tensor) -> tuple[int, int]:
    """Find the words of a start in a storage, and of a counter that a tensor shares.

    Part of an implementation is never set, for example the room for sizes of more dimensions, and
    holds what was in this memory before. Such a word looks right in some tensors, not in all.
    """
    starts = (3, 5, 7, 9, 11, 13)
    tensors = [_part(numbers, start) for start in starts]
    sharing = [tensor.detach() for tensor in tensors]  # with the same counter
    words, shared = [_of(tensor) for tensor in tensors], [_of(tensor) for tensor in sharing]
    columns = list(zip(zip(*words, strict=True), zip(*shared, strict=True), strict=True))
    offset = only(k for k, (own, _) in enumerate(columns) if own == starts)
    version = only(
        k
        for k, (own, same) in enumerate(columns)
        if own == same and len(set(own)) == len(own) and all(own) and k != offset
    )
    return offset, version


def _find_gradient(tensor: torch.Tensor) -> tuple[int, int, int, tuple[int, ...]]:
    """Find the words of ``requires_grad`` and ``grad_fn`` on a tensor that never had gradients."""
    before = _of(tensor)
    tensor.requires_grad_(True)
    words = _of(tensor)
    gradient = only(k for k in range(_OF_TENSOR) if before[k] == 0 != words[k])
    on = read(words[gradient], _OF_GRADIENT)
    tensor.requires_grad_(False)
    off = read(words[gradient], _OF_GRADIENT)
    needs = only(k for k in range(_OF_GRADIENT) if on[k] != off[k])
    tensor.mul_(torch.ones(2, device="cpu", requires_grad=True))
    made = read(words[gradient], _OF_GRADIENT)
    made_by = tuple(k for k in range(_OF_GRADIENT) if off[k] == 0 != made[k])
    if not made_by or _of(tensor)[gradient] != words[gradient]:
        raise LookupError
    return gradient, needs, on[needs] ^ off[needs], made_by


def _part(numbers: torch.Tensor, start: int) -> torch.Tensor:
    """Return two numbers of a tensor, as a tensor with its own count of writes."""
    storage = numbers.untyped_storage()
    return torch.empty(0, dtype=numbers.dtype, device="cpu").set_(storage, start, (2,), (1,))


def _of(tensor: torch.Tensor) -> list[int]:
    return read(tensor._cdata, _OF_TENSOR)
