"""Packed sequences: torch's own functions behind ``pack_padded_sequence`` and recurrent layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import _VF
from torch.nn.modules import rnn

_pack: Callable[..., Any] = _VF._pack_padded_sequence
_pad: Callable[..., Any] = _VF._pad_packed_sequence


def run_packed(
    padded: torch.Tensor,
    lengths: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weights: Sequence[torch.Tensor],
    mode: str,
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pack padded sequences, run a recurrent layer, and pad its result; see ``packed_rnn``."""
    data, sizes = _pack(padded, lengths.cpu(), False)
    state = (hidden, cell) if mode == "lstm" else hidden
    run = getattr(_VF, mode)
    result, *states = run(
        data, sizes, state, list(weights), biases, layers, 0.0, False, bidirectional
    )
    whole, _ = _pad(result, sizes, False, 0.0, len(padded))
    return whole, states[0], states[1] if mode == "lstm" else torch.zeros_like(cell)


@contextmanager
def packing_replaced(
    pack: Callable[..., Any],
    pad: Callable[..., Any],
    forward: Callable[..., Any],
) -> Iterator[None]:
    """Let other functions pack and pad inside ``with``, however the program has imported torch's.

    Args:
        pack: takes what ``torch._VF._pack_padded_sequence`` takes.
        pad: takes what ``torch._VF._pad_packed_sequence`` takes.
        forward: takes a layer's own forward, the layer and its arguments.
    """
    modules: Any = _VF
    with ExitStack() as undo:
        for name, function in (("_pack_padded_sequence", pack), ("_pad_packed_sequence", pad)):
            setattr(modules, name, function)
            undo.callback(delattr, modules, name)
        kinds: list[Any] = [rnn.RNN, rnn.LSTM, rnn.GRU]
        for kind in kinds:
            own = kind.forward
            undo.callback(setattr, kind, "forward", own)
            kind.forward = _replaced(forward, own)
        yield


def _replaced(forward: Callable[..., Any], own: Callable[..., Any]) -> Any:
    def call(layer: Any, given: Any, state: Any = None) -> Any:
        return forward(own, layer, given, state)

    return call


def flat_weights(layer: torch.nn.RNNBase) -> list[torch.Tensor]:
    """Return the present weights of a recurrent layer in the order in which its kernel reads them.

    `torch.export` replaces the parameters of a module, and not this list.
    """
    return [getattr(layer, name) for name in layer._flat_weights_names]


def total_length_given() -> int | None:
    """Return the argument ``total_length`` of the ``pad_packed_sequence`` that calls the caller."""
    length: int | None = sys._getframe(2).f_locals.get("total_length")
    return length
