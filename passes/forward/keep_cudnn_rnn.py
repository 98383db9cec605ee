"""Keep recurrent layers on CUDA one node each through differentiation (`program.cudnn_rnn`)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.program.cudnn_rnn import MODES
from mpcompile.step.graph import call

_ATEN = torch.ops.aten
_OPS = {getattr(_ATEN, name).input: mode for name, mode in MODES.items()}


@dataclass(frozen=True)
class KeepCudnnRnn:
    """Replace ``lstm``, ``gru`` and ``rnn_*`` by ``mpcompile::cudnn_rnn``.

    Layers without dropout between them become one node. Otherwise each layer is a node, and dropout
    is an op between two layers, so that PyTorch and not cuDNN draws its random numbers. Nothing
    changes if PyTorch would not use cuDNN: on other devices, on ROCm, and if
    ``torch.backends.cudnn.enabled`` is off.

    Attributes:
        device: type of the devices whose recurrent layers are replaced.

    Example:
        >>> module = forward(nn.GRU(4, 4, bias=False), f32(5, 2, 4))
        >>> before_and_after(KeepCudnnRnn("cpu"), module)
        - gru  tuple  gru batch_0_f16 zeros [p_model_weight_ih_l0_f16,p_model_weight_hh_l0_f16]
            False 1 0 True False False
        + cudnn_rnn_default  tuple  cudnn_rnn batch_0_f16
            [p_model_weight_ih_l0_f16,p_model_weight_hh_l0_f16] zeros None 3 1 False False
        - getitem  f16[5,2,4]  getitem gru 0
        + getitem_2  f16[5,2,4]  getitem cudnn_rnn_default 0
        - getitem_1  f16[1,2,4]  getitem gru 1
        + getitem_3  f16[1,2,4]  getitem cudnn_rnn_default 1
        + getitem_4  f16[0]  getitem cudnn_rnn_default 2
        - getitem_f32  f32[5,2,4]  _to_copy getitem dtype=f32
        + getitem_f32  f32[5,2,4]  _to_copy getitem_2 dtype=f32
        - getitem_1_f32  f32[1,2,4]  _to_copy getitem_1 dtype=f32
        + getitem_1_f32  f32[1,2,4]  _to_copy getitem_3 dtype=f32
    """

    device: str = "cuda"

    def __call__(self, module: fx.GraphModule) -> int:
        """Rewrite; return how many recurrent ops were replaced."""
        if torch.version.hip is not None or not torch.backends.cudnn.enabled:
            return 0
        changed = 0
        for node in list(module.graph.nodes):
            if node.target in _OPS and node.args[0].meta["val"].device.type == self.device:
                _replace(module.graph, node)
                changed += 1
        return changed


@dataclass(frozen=True, slots=True)
class _Recurrence:
    """The arguments of ``aten::lstm.input``, ``gru.input`` and the like.

    Attributes:
        input: see `mpcompile.program.cudnn_rnn.cudnn_rnn`.
        states: the first state, and for an LSTM the first cells.
        weights: of all layers.
        layers: how many there are.
        dropout: probability between two layers, 0 outside training.
        bidirectional: whether each layer runs in both directions.
        batch_first: whether the batch is the first dimension.
    """

    input: fx.Node
    states: tuple[fx.Node, ...]
    weights: Sequence[fx.Node]
    layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_before(node):
        results = _layers(graph, node, _read(node))
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)


def _read(node: fx.Node) -> _Recurrence:
    arguments: Any = node.args
    value, states, weights, _, layers, dropout, train, bidirectional, batch_first = arguments
    return _Recurrence(
        input=value,
        states=tuple(states) if isinstance(states, list | tuple) else (states,),
        weights=weights,
        layers=layers,
        dropout=dropout if train else 0.0,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )


def _layers(graph: fx.Graph, node: fx.Node, whole: _Recurrence) -> list[fx.Node]:
    """Add the nodes that replace a recurrent op; return the nodes that replace its results."""
    at_once = 1 if whole.dropout else whole.layers
    weights = len(whole.weights) // whole.layers * at_once
    states = (1 + whole.bidirectional) * at_once
    output = whole.input
    last: list[list[fx.Node]] = [[] for _ in whole.states]
    for part in range(whole.layers // at_once):
        if part > 0:
            output = _like(node, call(graph, _ATEN.dropout.default, output, whole.dropout, True))
        first = list(whole.states)
        if at_once < whole.layers:
            span = (0, part * states, (part + 1) * states)
            first = [_like(node, call(graph, _ATEN.slice.Tensor, s, *span)) for s in first]
        layer = call(
            graph,
            torch.ops.mpcompile.cudnn_rnn.default,
            output,
            list(whole.weights[part * weights : (part + 1) * weights]),
            *[first[0], first[1] if len(first) == 2 else None],
            _OPS[node.target],
            at_once,
            whole.batch_first,
            whole.bidirectional,
        )
        output, *ends = [_result(graph, _like(node, layer), index) for index in range(3)]
        for found, end in zip(last, ends, strict=False):
            found.append(end)
    joined = [
        found[0] if len(found) == 1 else _like(node, call(graph, _ATEN.cat.default, found))
        for found in last
    ]
    return [output, *joined]


def _result(graph: fx.Graph, node: fx.Node, index: int) -> fx.Node:
    result = graph.call_function(operator.getitem, (node, index))
    result.meta = {**node.meta, "val": node.meta["val"][index]}
    return result


def _like(old: fx.Node, new: fx.Node) -> fx.Node:
    """Give a new node the source position of the op that it replaces."""
    new.meta.update({key: value for key, value in old.meta.items() if key != "val"})
    return new
