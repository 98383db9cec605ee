"""What is known of an op's result without asking the fake mode is what the mode says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.torch_private.fake_results import known_result
from mpcompile.torch_private.tensors import fake_mode, fake_with
from mpcompile.torch_private.tracing import DispatchMode

ATEN = torch.ops.aten
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
MODE = fake_mode()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Fake tensors: permuted, sliced, expanded, empty, with sizes of 1."""
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    value = torch.empty(shape, dtype=draw(st.sampled_from(DTYPES)))
    value = value.permute(draw(st.permutations(range(len(shape)))))
    kind = draw(st.integers(0, 5))
    if kind == 0 and shape:
        value = value[::2]
    if kind == 1:
        value = value.unsqueeze(0).expand(3, *value.shape)
    return MODE.from_tensor(value, static_shapes=True)


class Beside(DispatchMode):
    """Asks below autograd, as the recorder does, for both results of an op."""

    def __init__(self, asked: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asked = asked
        self.found: torch.Tensor | None = None
        self.true: Any = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is not self._asked:  # such as a question about the device
            return func(*args, **(kwargs or {}))
        self.found = known_result(func, args, kwargs or {})
        self.true = func(*args, **(kwargs or {}))
        return self.true


def assert_as_the_mode_says(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None
) -> bool:
    """Compare; return whether there was an answer."""
    with MODE, Beside(func) as beside:
        func(*args, **(kwargs or {}))
    found, true = beside.found, beside.true
    if found is None:
        return False
    assert type(found) is type(true)
    assert (found.shape, found.stride(), found.dtype) == (true.shape, true.stride(), true.dtype)
    assert found.device == true.device
    assert found.storage_offset() == true.storage_offset()
    assert found._is_view() == true._is_view()
    assert found.requires_grad == true.requires_grad
    shared = args[0].untyped_storage()._cdata
    assert (found.untyped_storage()._cdata == shared) == (true.untyped_storage()._cdata == shared)
    return True


@given(value=tensors(), dtype=st.sampled_from(DTYPES))
@settings(max_examples=300)
def test_casts(value: torch.Tensor, dtype: torch.dtype) -> None:
    assert_as_the_mode_says(ATEN._to_copy.default, (value,), {"dtype": dtype})


@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(DTYPES[:4]),
    turned=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=100)
def test_linears(
    sizes: tuple[int, int, int], dtype: torch.dtype, turned: tuple[bool, bool]
) -> None:
    rows, inner, columns = sizes
    one = torch.empty((inner, rows) if turned[0] else (rows, inner), dtype=dtype)
    other = torch.empty((columns, inner) if turned[1] else (inner, columns), dtype=dtype)
    given = [torch.empty(columns, dtype=dtype), one.t() if turned[0] else one]
    given.append(other.t() if turned[1] else other)
    fakes = [MODE.from_tensor(value, static_shapes=True) for value in given]
    assert_as_the_mode_says(ATEN.addmm.default, fakes)


def test_what_is_plain_has_an_answer_and_the_rest_is_asked() -> None:
    like = MODE.from_tensor(torch.empty(3, 4), static_shapes=True)
    assert assert_as_the_mode_says(ATEN._to_copy.default, (like,), {"dtype": torch.float16})
    square = MODE.from_tensor(torch.empty(4, 4), static_shapes=True)
    bias = MODE.from_tensor(torch.empty(4), static_shapes=True)
    assert assert_as_the_mode_says(ATEN.addmm.default, (bias, like, square))
    for options in ({}, {"dtype": torch.half, "memory_format": torch.channels_last}):
        assert known_result(ATEN._to_copy.default, (like,), options) is None
    assert known_result(ATEN.addmm.default, (bias, like, square), {"beta": 2}) is None
    assert known_result(ATEN.relu.default, (like,), {}) is None
    with MODE:
        number = torch.tensor(2.0)  # the mode knows its value, and that of what is made of it
        assert known_result(ATEN._to_copy.default, (number,), {"dtype": torch.float64}) is None
    real = fake_with(torch.empty(3), [])
    assert known_result(ATEN._to_copy.default, (real,), {"dtype": torch.float16}) is None
