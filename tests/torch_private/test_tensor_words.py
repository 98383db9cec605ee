"""What is read as words of memory says what the attributes say, whatever changes."""

import ctypes
import gc
import random
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpcompile.torch_private import dictionary_words, tensor_words
from mpcompile.torch_private.dictionary_words import WatchedDictionaries
from mpcompile.torch_private.tensor_words import Writes, layout_of_tensors, watch

VOID = ctypes.c_void_p
Change = Callable[[nn.Parameter], Any]


def weights() -> tuple[torch.Tensor, list[nn.Parameter]]:
    """Return a tensor of numbers, and three parameters that are views of it."""
    whole = torch.arange(20.0)
    return whole, [nn.Parameter(whole[4 * k : 4 * k + 4].detach()) for k in range(3)]


def make_by_an_op(weight: nn.Parameter) -> None:
    """Turn a leaf into the result of an op, which requires a gradient again."""
    weight.requires_grad_(False)
    weight.mul_(torch.ones(4, requires_grad=True))


def move_by_one(weight: nn.Parameter) -> None:
    """Shift a weight in its storage."""
    weight.data = torch.as_strided(weight.data, (4,), (1,), weight.storage_offset() + 1)


def put_elsewhere(weight: nn.Parameter) -> None:
    """Give a weight another storage by an op."""
    with torch.no_grad():
        weight.set_(torch.zeros(4))  # type: ignore[call-overload]


def resize_storage(weight: nn.Parameter) -> None:
    """Give the storage of a weight other memory; in shared memory torch ends the process here."""
    if not weight.is_shared():
        weight.untyped_storage().resize_(1 << 20)


CHANGES: dict[str, Change] = {
    "other data": lambda weight: setattr(weight, "data", torch.zeros(4)),
    "moved by one": move_by_one,
    "set": put_elsewhere,
    "frozen": lambda weight: weight.requires_grad_(False),
    "frozen by attribute": lambda weight: setattr(weight, "requires_grad", False),
    "made by an op": make_by_an_op,
    "shared memory": lambda weight: weight.share_memory_(),
    "another storage": resize_storage,
    "swapped": lambda weight: torch.utils.swap_tensors(weight, nn.Parameter(torch.zeros(4))),
}


def facts(tensors: list[Any]) -> list[tuple[int, bool]]:
    """Return what a check must notice, by attributes."""
    return [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors]


def test_the_words_are_found_on_this_torch() -> None:
    """All versions that were tried have them, so the quick check is what the other tests test."""
    assert layout_of_tensors() is not None


def fill_free_memory(seed: int) -> None:
    """Leave numbers in the memory that the next objects of C++ get."""
    c, numbers = ctypes.CDLL(None), random.Random(seed)
    c.malloc.restype, c.malloc.argtypes, c.free.argtypes = VOID, [ctypes.c_size_t], [VOID]
    for size in range(16, 513, 16):
        places = [c.malloc(size) for _ in range(20)]
        for place in places:
            ctypes.memmove(place, numbers.randbytes(size), size)
        for place in places:
            c.free(place)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_in_memory_before_does_not_matter(seed: int) -> None:
    """Words that torch never sets are not taken for ones that it does."""
    expected = layout_of_tensors()
    fill_free_memory(seed)
    layout_of_tensors.cache_clear()
    assert layout_of_tensors() == expected is not None


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "made by an op"])
@pytest.mark.parametrize("index", [0, 2])
def test_each_change_is_noticed(name: str, index: int) -> None:
    """A change of any of several tensors makes the check say no."""
    _, tensors = weights()
    unchanged = watch(tensors)
    assert unchanged()
    before = facts(tensors)
    CHANGES[name](tensors[index])
    assert not unchanged()
    assert before != facts(tensors)


def test_a_frozen_weight_that_an_op_writes_is_noticed() -> None:
    """It requires a gradient then, because an op with one has made it."""
    _, tensors = weights()
    tensors[1].requires_grad_(False)
    unchanged = watch(tensors)
    assert unchanged()
    tensors[1].mul_(torch.ones(4, requires_grad=True))
    assert tensors[1].requires_grad
    assert not unchanged()


def test_what_does_not_count_is_not_noticed() -> None:
    """Values, gradients, hooks and other references leave the check as it is."""
    whole, tensors = weights()
    tensors[0].sum().backward()  # makes what autograd keeps beside a leaf
    unchanged = watch(tensors)
    handle = tensors[1].register_hook(lambda gradient: gradient)
    sum(tensor.square().sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        tensors[2].add_(1)
    whole.zero_()
    held = [tensor.detach() for tensor in tensors], weakref.ref(tensors[0])
    tensors[0].grad = None
    handle.remove()
    assert unchanged()
    del held


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(CHANGES))), max_size=6))
def test_the_check_never_says_yes_wrongly(changes: list[tuple[int, str]]) -> None:
    """After any changes, also those that undo each other, a yes means that all is as before."""
    _, tensors = weights()
    unchanged, before = watch(tensors), facts(tensors)
    for index, name in changes:
        try:
            CHANGES[name](tensors[index])
        except RuntimeError:
            continue  # PyTorch refuses some changes after others
        if unchanged():
            assert facts(tensors) == before


def test_watched_tensors_stay_alive() -> None:
    """Their words are read, so nothing else may be in their place."""
    tensors = weights()[1]
    references = [weakref.ref(tensor) for tensor in tensors]
    unchanged, writes = watch(tensors), Writes(tensors)
    del tensors
    gc.collect()
    assert all(reference() is not None for reference in references)
    assert unchanged()
    assert writes.now() == writes.now()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3).to_sparse(),
        torch.zeros(0, requires_grad=True),
        torch.zeros(2, 3, device="meta"),
        torch.zeros(2, dtype=torch.complex64)[1:].conj(),
        torch.ones(3, requires_grad=True).square(),
        nn.Buffer(torch.zeros((), dtype=torch.int64)),
    ],
    ids=["sparse", "empty", "meta", "conjugate", "result", "number"],
)
def test_tensors_of_all_kinds_can_be_watched(tensor: torch.Tensor) -> None:
    """The check says yes for them, and no after a change of another one."""
    other = torch.zeros(2)
    unchanged = watch([tensor, other])
    assert unchanged()
    other.requires_grad_(True)
    assert not unchanged()


def test_no_tensors_are_unchanged() -> None:
    """A program may have no tensors."""
    assert watch([])()
    assert Writes([]).now() == Writes([]).now()


@pytest.mark.parametrize("read", [True, False], ids=["words", "attributes"])
def test_writes_are_counted(read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write that PyTorch counts gives another value, with and without words."""
    if not read:
        monkeypatch.setattr(tensor_words, "layout_of_tensors", lambda: None)
        assert not watch(weights()[1])()
    whole, tensors = weights()
    tensors = [nn.Parameter(tensor.data) for tensor in tensors]  # each with its own count
    writes = Writes(tensors)
    seen = [writes.now()]
    assert writes.now() == seen[0]
    whole.add_(1)  # not a write to the parameters
    assert writes.now() == seen[0]
    for tensor in tensors:
        with torch.no_grad():
            tensor.add_(1)
        assert writes.now() not in seen
        assert writes.now() == writes.now()
        seen.append(writes.now())
    tensors[0].data = torch.zeros(4)  # is not counted, and the next write is
    now = writes.now()
    nn.init.ones_(tensors[0])
    assert writes.now() != now
    now = writes.now()
    torch.utils.swap_tensors(tensors[1], nn.Parameter(torch.zeros(4)))
    with torch.no_grad():
        tensors[1].add_(1).add_(1).add_(1)
    assert writes.now() != now


class Plain:
    """An object whose attributes Python stores in its own way."""

    def __init__(self) -> None:
        self.number, self.other = 1, 2


@pytest.mark.parametrize("read", [True, False], ids=["words", "versions"])
def test_each_write_to_a_dictionary_is_noticed(read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also attributes of objects, which Python writes by short ways when a line has run often."""
    if not read:
        monkeypatch.setattr(dictionary_words, "_place", lambda: None)
    plain, ordered, empty = Plain(), OrderedDict(a=1), dict[str, int]()
    watched = WatchedDictionaries([vars(plain), ordered, empty])
    assert watched.hold()

    def store(value: int) -> None:
        plain.number = value

    for value in range(2, 200):
        store(value)
        assert not watched.hold()
        watched.note()
        assert watched.hold()
    changes: list[Callable[[], Any]] = [
        lambda: ordered.update(a=2),
        lambda: ordered.pop("a"),
        lambda: empty.setdefault("b", 1),
        lambda: empty.clear(),
        lambda: delattr(plain, "other"),
        lambda: vars(plain).update(other=3),
    ]
    for change in changes:
        change()
        assert not watched.hold()
        watched.note()
        assert watched.hold()


def test_dictionaries_that_can_be_asked_one_by_one_only_are_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller has a quicker way then."""
    monkeypatch.setattr(dictionary_words, "_place", lambda: None)
    assert not WatchedDictionaries([{}], only_at_once=True).hold()
