"""Speech, and sequences of several lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils import rnn

from programs.others.registry import classes, program


class Speech(nn.Module):
    """A small acoustic model: a recurrent layer and letters at each time."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, 16, bidirectional=True, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.recurrent(x)[0])
        return result.log_softmax(-1)


LETTERS, FRAMES, COUNTS = (
    torch.randint(1, 10, (4, 5), generator=torch.Generator().manual_seed(0)),
    torch.tensor([12, 11, 10, 12]),
    torch.tensor([5, 4, 2, 5]),
)


@program
def connectionist_temporal_classification() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor, frames: Tensor, counts: Tensor) -> Tensor:
        return functional.ctc_loss(model(x).transpose(0, 1), y, frames, counts)

    return Speech(), loss, (torch.randn(4, 12, 8), LETTERS, FRAMES, COUNTS)


@program
def ctc_of_targets_in_a_row() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor, frames: Tensor, counts: Tensor) -> Tensor:
        each = nn.CTCLoss(reduction="none", zero_infinity=True)
        result: Tensor = each(model(x).transpose(0, 1), y, frames, counts)
        return result.mean()

    row = torch.cat([letters[:count] for letters, count in zip(LETTERS, COUNTS, strict=True)])
    return Speech(), loss, (torch.randn(4, 12, 8), row, torch.tensor([3, 11, 10, 12]), COUNTS)


@program
def ctc_of_lists_of_lengths() -> Any:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        frames: Any = [12] * 4
        counts: Any = [5, 4, 2, 5]
        letters = model(x).transpose(0, 1)
        return functional.ctc_loss(letters, y, frames, counts, blank=9, reduction="sum")

    return Speech(), loss, (torch.randn(4, 12, 8), LETTERS - 1)


class Packed(nn.Module):
    """Reads sequences of several lengths."""

    def __init__(self, layer: nn.RNNBase, read: Callable[..., Tensor], ordered: bool) -> None:
        super().__init__()
        self.recurrent, self.read, self.ordered = layer, read, ordered
        self.out = nn.LazyLinear(3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=self.ordered)
        read: Tensor = self.out(self.read(*self.recurrent(packed), x, lengths))
        return read


def mean_of_results(result: Any, state: Any, x: Tensor, lengths: Tensor) -> Tensor:
    del state
    padded, _ = rnn.pad_packed_sequence(result, True, total_length=x.shape[1])
    return padded.sum(1) / lengths[:, None]


def last_results(result: Any, state: Any, x: Tensor, lengths: Tensor) -> Tensor:
    del state, lengths
    padded, found = rnn.pad_packed_sequence(result, True)
    return padded[torch.arange(len(x)), found - 1]


def activated_results(result: Any, state: Any, x: Tensor, lengths: Tensor) -> Tensor:
    active = rnn.PackedSequence(torch.relu(result.data), *result[1:])
    return mean_of_results(active, state, x, lengths)


def last_states(result: Any, state: Any, *_: Tensor) -> Tensor:
    del result
    states = torch.cat(state) if isinstance(state, tuple) else state
    return states.transpose(0, 1).flatten(1)


def packed(layer: nn.RNNBase, read: Callable[..., Tensor], ordered: bool = False) -> Any:
    lengths = torch.tensor([7, 6, 3, 2] if ordered else [3, 7, 2, 6])
    net = Packed(layer, read, ordered)
    batch = torch.randn(4, 7, 8), lengths, classes(4, 3)
    net(*batch[:2])  # the lazy layer learns its size
    return net, lambda m, x, n, y: functional.cross_entropy(m(x, n), y), batch


@program
def packed_lstm() -> Any:
    return packed(nn.LSTM(8, 16, batch_first=True, bidirectional=True), mean_of_results)


@program
def packed_lstm_in_order() -> Any:
    return packed(nn.LSTM(8, 16, batch_first=True), last_results, ordered=True)


@program
def packed_lstm_with_projection() -> Any:
    return packed(nn.LSTM(8, 16, batch_first=True, proj_size=4), activated_results)


@program
def packed_gru_in_a_stack() -> Any:
    return packed(nn.GRU(8, 16, 2, batch_first=True, bidirectional=True), last_states)


@program
def packed_lstm_states() -> Any:
    return packed(nn.LSTM(8, 16, batch_first=True, bias=False), last_states)


@program
def packed_plain_rnn() -> Any:
    return packed(nn.RNN(8, 16, batch_first=True, nonlinearity="relu"), last_results)
