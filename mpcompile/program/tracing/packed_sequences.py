"""Packed sequences with static shapes, while a program is traced.

The rows of a real packed sequence are as many as all its sequences are long. While a program is
traced, a packed sequence holds the padded rows, time by time, and recurrent layers on it are the op
``mpcompile::packed_rnn``. What reads the rows of a packed sequence directly would see padding; the
first batch shows that, and such a program is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from mpcompile.errors import NotOneGraph
from mpcompile.program.stack_lines import line_now
from mpcompile.program.tracing.packed_rnn import packed_rnn
from mpcompile.torch_private.packed import flat_weights, packing_replaced, total_length_given


@torch.library.custom_op("mpcompile::check_longest", mutates_args=())
def check_longest(lengths: torch.Tensor, time: int) -> torch.Tensor:
    """Return a copy of the lengths; raise ValueError if the longest is another than the time."""
    longest = int(lengths.max())
    if longest != time:
        raise ValueError(
            f"the longest sequence of the batch has {longest} steps and is padded to {time}, and "
            "the program pads its results to the longest: give pad_packed_sequence(total_length=)"
        )
    return lengths.clone()


@check_longest.register_fake
def _(lengths: torch.Tensor, time: int) -> torch.Tensor:
    del time
    return torch.empty_like(lengths)


class _Padded:
    """The packed sequences that were made while one program is traced."""

    def __init__(self) -> None:
        # By the id of ``batch_sizes``, which passes on from one packed sequence to the next.
        self._lengths: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def pack(
        self, padded: torch.Tensor, lengths: torch.Tensor, batch_first: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padded rows, time by time, and how many sequences go on at each time."""
        if batch_first:
            padded = padded.transpose(0, 1)
        times = torch.arange(padded.shape[0])
        sizes = (lengths[None, :] > times[:, None]).sum(1)
        self._lengths[id(sizes)] = sizes, lengths
        return padded.flatten(0, 1), sizes

    def pad(
        self,
        rows: torch.Tensor,
        sizes: torch.Tensor,
        batch_first: bool,
        value: float,
        total: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padded sequences, and their lengths."""
        lengths, time = self._of(sizes), sizes.shape[0]
        if total_length_given() is None:
            lengths = check_longest(lengths, time)
        whole = rows.unflatten(0, (time, -1))
        after = torch.arange(time)[:, None] >= lengths[None, :]
        shape = (*after.shape, *[1] * (whole.dim() - 2))
        whole = whole.masked_fill(after.to(rows.device).view(shape), value)
        if total > time:
            more = whole.new_full((total - time, *whole.shape[1:]), value)
            whole = torch.cat([whole, more])
        return (whole.transpose(0, 1) if batch_first else whole), lengths

    def forward(self, own: Callable[..., Any], layer: Any, given: Any, state: Any) -> Any:
        """Run a recurrent layer."""
        if not isinstance(given, PackedSequence):
            return own(layer, given, state)
        if layer.dropout and layer.training and layer.num_layers > 1:
            raise NotOneGraph(
                "a recurrent layer with dropout between its layers reads a packed sequence",
                line_now(),
                "give it dropout=0, or use one layer and torch.nn.Dropout",
            )
        rows, sizes, order, back = given
        lengths = self._of(sizes)
        padded = rows.unflatten(0, (sizes.shape[0], -1))
        is_lstm = layer.mode == "LSTM"
        if state is None:
            hidden, cell = self._zeros(layer, padded, is_lstm)
        else:
            given_state: Any = layer.permute_hidden(state, order)
            hidden, cell = given_state if is_lstm else (given_state, padded.new_empty(0))
        result, *last = packed_rnn(
            padded, lengths, hidden, cell, flat_weights(layer), layer.mode.lower(), layer.bias,
            layer.num_layers, layer.bidirectional,
        )  # fmt: skip
        packed = PackedSequence(result.flatten(0, 1), sizes, order, back)
        states = (last[0], last[1]) if is_lstm else last[0]
        return packed, layer.permute_hidden(states, back)

    def _zeros(
        self, layer: torch.nn.RNNBase, padded: torch.Tensor, is_lstm: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        depth = layer.num_layers * (1 + layer.bidirectional)
        batch = padded.shape[1]
        hidden = padded.new_zeros(depth, batch, layer.proj_size or layer.hidden_size)
        return hidden, padded.new_zeros(*((depth, batch, layer.hidden_size) if is_lstm else (0,)))

    def _of(self, sizes: torch.Tensor) -> torch.Tensor:
        known = self._lengths.get(id(sizes))
        if known is None:
            raise NotOneGraph(
                "a packed sequence comes into the program from outside, or is made by hand, and "
                "its size depends on the batch",
                line_now(),
                "give the program the padded tensor and the lengths",
            )
        return known[1]


@contextmanager
def packed_as_padded() -> Iterator[None]:
    """Let packed sequences have static shapes inside ``with``."""
    made = _Padded()
    with packing_replaced(made.pack, made.pad, made.forward):
        yield
