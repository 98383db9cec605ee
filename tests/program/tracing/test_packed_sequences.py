"""Packed sequences: batches of other lengths, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from programs.others import PROGRAMS
from programs.others.registry import classes
from programs.others.sequences import Packed, mean_of_results
from torch import Tensor, nn
from torch.nn.utils import rnn

import mpcompile
from mpcompile import FULL_PRECISION, CannotCapture, TrainStep, Unfaithful


def compiled(model: nn.Module, loss: Any, batch: Any, whole: bool = True) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return mpcompile.compile(model, loss, optimizer, batch, policy=FULL_PRECISION, whole=whole)


def test_a_later_batch_has_other_lengths() -> None:
    model, loss, (x, _, y) = PROGRAMS["packed_lstm"]()
    eager = copy.deepcopy(model)
    step = compiled(model, loss, (x, torch.tensor([3, 7, 2, 6]), y))
    for lengths in ([7, 7, 7, 7], [1, 2, 3, 1], [5, 1, 1, 4]):
        expected = loss(eager, x, torch.tensor(lengths), y)
        expected.backward()
        mine = step(x, torch.tensor(lengths), y)
        assert torch.equal(mine, expected.detach())
        with torch.no_grad():
            for weight in eager.parameters():
                assert weight.grad is not None
                weight.sub_(0.1 * weight.grad)
                weight.grad = None
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key], msg=key)


def test_results_that_would_have_another_size_are_an_error_and_nothing_changes() -> None:
    model, loss, (x, lengths, y) = PROGRAMS["packed_plain_rnn"]()
    step = compiled(model, loss, (x, lengths, y))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"longest .* 5 steps and is padded to 7.*total_length="):
        step(x, torch.tensor([5, 4, 3, 2]), y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rows_read_directly_are_refused_because_they_have_padding() -> None:
    def read(result: Any, *_: Any) -> torch.Tensor:
        rows: torch.Tensor = result.data
        return rows.mean(0, keepdim=True).expand(4, -1)

    net = Packed(nn.LSTM(8, 16, batch_first=True), read, ordered=True)
    batch = torch.randn(4, 7, 8), torch.tensor([7, 4, 3, 2]), classes(4, 3)
    net(*batch[:2])
    with pytest.raises(Unfaithful, match="the loss is"):
        compiled(net, lambda m, x, n, y: nn.functional.cross_entropy(m(x, n), y), batch)


def test_dropout_between_layers_is_in_pieces_or_refused_with_its_line() -> None:
    layer = nn.LSTM(8, 16, 2, batch_first=True, dropout=0.5)
    net = Packed(layer, mean_of_results, ordered=False)
    batch = torch.randn(4, 7, 8), torch.tensor([3, 7, 2, 6]), classes(4, 3)
    net(*batch[:2])
    eager = copy.deepcopy(net)

    def loss(model: nn.Module, x: Tensor, n: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x, n), y)

    with pytest.raises(CannotCapture, match=r"sequences\.py:\d+: a recurrent layer with dropout"):
        compiled(net, loss, batch)
    step = compiled(net, loss, batch, whole=False)
    torch.manual_seed(1)
    mine = step(*batch)
    torch.manual_seed(1)
    assert torch.equal(mine, loss(eager, *batch).detach())


def test_a_packed_batch_from_outside_is_refused() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(8, 4)

        def forward(self, sequence: Any) -> torch.Tensor:
            result: torch.Tensor = self.recurrent(sequence)[1]
            return result

    sequence = rnn.pack_sequence([torch.randn(5, 8), torch.randn(3, 8)])
    with pytest.raises(CannotCapture, match="comes into the program from outside"):
        compiled(Reader(), lambda m, x: m(x).square().mean(), (sequence,))


def test_torchs_functions_are_as_before() -> None:
    before = nn.LSTM.forward, torch.ctc_loss
    compiled(*PROGRAMS["packed_lstm"]())
    assert (nn.LSTM.forward, torch.ctc_loss) == before
    layer, x = nn.LSTM(8, 16), torch.randn(5, 2, 8)
    result, _ = layer(rnn.pack_padded_sequence(x, torch.tensor([5, 3])))
    assert len(result.data) == 8
