"""Give large linears a multiple of eight outputs, because a Tensor Core needs it.

Vocabularies come in all sizes: GPT-2's has 50,257 tokens, BERT's 30,522. With rows of zeros behind
the weight the matmul has aligned rows, and the surplus columns of its result are sliced off. The
zeros are in the arena, in the room behind the weight (`mpcompile.step.arena.Arena`).
`passes.lay_out_copies` lets the step read them from there, so no step copies in order to pad. The
gradient of the zeros is not kept, so they stay zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.passes.forward.join_matmuls import allow_strides, arguments_of_linear, takes_strides
from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.node_tensors import NARROW, count_of
from mpcompile.step.arena import TILE, ArenaPosition
from mpcompile.step.graph import call

_ATEN = torch.ops.aten
_LINEAR = _ATEN.linear.default


@dataclass(frozen=True)
class PadVocabulary:
    """Pad 16-bit linears whose trained weight has room for the zeros behind it.

    Attributes:
        positions: per placeholder of a trained weight its position in an arena.
        least: the fewest numbers in the result of a linear that is padded.

    Example:
        >>> positions = {"p_model_weight": ArenaPosition("arena0", 24, True)}
        >>> module = forward(nn.Linear(8, 5, bias=False), f32(2, 8))
        >>> before_and_after(PadVocabulary(positions, least=1), module)
        - linear  f16[2,5]  linear batch_0_f16 p_model_weight_f16
        + new_zeros_default  f16[3,8]  new_zeros p_model_weight_f16 [3,8]
        + cat_default  f16[8,8]  cat [p_model_weight_f16,new_zeros_default]
        + linear_default  f16[2,8]  linear batch_0_f16 cat_default None
        + slice_tensor  f16[2,5]  slice linear_default -1 0 5
        - linear_f32  f32[2,5]  _to_copy linear dtype=f32
        + linear_f32  f32[2,5]  _to_copy slice_tensor dtype=f32
    """

    positions: Mapping[str, ArenaPosition]
    least: int = 1 << 20

    def __call__(self, module: fx.GraphModule) -> int:
        """Rewrite a forward graph that has its casts; return the number of linears padded."""
        found = [node for node in module.graph.nodes if self.pads(node)]
        for node in found:
            _pad(module.graph, node)
        return len(found)

    def pads(self, node: fx.Node) -> bool:
        """Whether a node is a linear that is padded."""
        if node.target is not _LINEAR or node.meta["val"].dtype not in NARROW:
            return False
        _, weight, _ = arguments_of_linear(node)
        position = self.positions.get(source_of(weight).name) if is_cast(weight) else None
        shape = weight.meta["val"].shape
        if position is None or not position.zeros or len(shape) != 2:
            return False
        missing = -shape[0] % TILE * shape[1]
        large = count_of(node.meta["val"]) >= self.least
        return 0 < missing <= position.room and large and takes_strides(node)


def _pad(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias = arguments_of_linear(node)
    outputs, inputs = weight.meta["val"].shape
    missing = -outputs % TILE

    def padded(value: Any, *rest: int) -> fx.Node:
        zeros = call(graph, _ATEN.new_zeros.default, value, [missing, *rest])
        return call(graph, _ATEN.cat.default, [value, zeros])

    with graph.inserting_before(node):
        wide = padded(weight, inputs)
        whole = call(graph, _LINEAR, x, wide, None if bias is None else padded(bias))
        part = call(graph, _ATEN.slice.Tensor, whole, -1, 0, outputs)
    for new in (wide, whole, part):
        new.meta = {**node.meta, "val": new.meta["val"]}
    allow_strides(node)
    node.replace_all_uses_with(part)
    graph.erase_node(node)
