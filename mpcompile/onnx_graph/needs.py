"""Tables of the needs of ops of an ONNX graph, before any policy: the first match counts."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mpcompile.onnx_graph.values import is_left_out, is_standard
from mpcompile.plan.needs import ANY, FREE, NARROW, Need
from mpcompile.plan.op_table import ONNX_RULES
from mpcompile.plan.rule import Rule

CONSTANT = "Constant"
"""The kind of an op that makes a tensor without reading one, in either precision."""

SELF_WIDENING = frozenset(
    "Softmax LogSoftmax LayerNormalization GroupNormalization RMSNormalization "
    "SimplifiedLayerNormalization BatchNormalization InstanceNormalization".split()
)
"""Reductions whose 16-bit kernels add up in FP32; a 16-bit ReduceMean adds up in 16 bits."""

_OWN_CASTS = ("Cast", "CastLike")
_SQUARE = ONNX_RULES["Pow"]


def _adds_up(node: ir.Node) -> bool:
    """Return whether a scatter adds or multiplies the numbers written to an index."""
    how = node.attributes.get("reduction")
    scatters = is_standard(node) and node.op_type in ("ScatterElements", "ScatterND")
    return scatters and how is not None and how.as_string() not in ("none", "max", "min")


def _trains(node: ir.Node) -> bool:
    """Return whether a batch norm updates statistics, which must have its tensors' format."""
    made = sum(not is_left_out(value) for value in node.outputs)
    return is_standard(node) and node.op_type == "BatchNormalization" and made > 1


def _squares(node: ir.Node) -> bool:
    """Return whether a node multiplies a tensor by itself."""
    return is_standard(node) and node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that the table of needs reads.

    Attributes:
        node: the op.
        rule: its row of the op table.
        reads: ids of the tensors that it reads.
        writes: ids of the tensors that it writes in the planned precision.
        lacks: why it cannot run in 16 bits, or "".
        overridden: the user has set its precision.
    """

    node: ir.Node
    rule: Rule
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    lacks: str
    overridden: bool

    @property
    def needs_wide_inputs(self) -> bool:
        """Whether it computes in FP32, and no 16-bit kernel of it does."""
        return self.rule.inside and self.node.op_type not in SELF_WIDENING

    @property
    def made_of_nothing(self) -> bool:
        """Whether it makes FP32 tensors and reads none."""
        return bool(self.writes) and not self.reads and self.node.op_type != CONSTANT


NEEDS: tuple[Need[Facts], ...] = (
    # The first three are of different op types, so their order among themselves does not matter.
    # They come before all others and give their reason even if the policy requests FP32.
    Need(ANY, lambda op: op.node.op_type in _OWN_CASTS, "the program itself asks for this dtype"),
    Need(ANY, lambda op: _trains(op.node), "its running statistics are FP32"),
    Need(ANY, lambda op: _adds_up(op.node), "adding up in 16 bits would round every addend"),
    # Before a missing kernel: the range of a square is too large on every machine.
    Need(FREE, lambda op: _squares(op.node) and not op.overridden, _SQUARE.why, _SQUARE),
    # Before the precision inside the kernel: there is no kernel.
    Need(NARROW, lambda op: bool(op.lacks), lambda op: op.lacks),
    Need(
        FREE,
        lambda op: op.needs_wide_inputs,
        lambda op: f"{op.rule.why}, but its 16-bit kernel would not",
    ),
    # Last, because it is the most general: a line above that also matches says more.
    Need(NARROW, lambda op: op.made_of_nothing, "made in FP32, not computed from FP32"),
)
"""An op's needs, which come before the policy's wish."""


@dataclass(frozen=True, slots=True)
class BorderFacts:
    """The facts that the table of borders' needs reads.

    Attributes:
        together: whether all values that cross there are FP32 and of one known kind.
        lacks: why ONNX does not let it cross in 16 bits, or "".
    """

    together: bool
    lacks: str


BORDER_NEEDS: tuple[Need[BorderFacts], ...] = (
    # Before ONNX's own rules: those apply only to values that could change type.
    Need(
        ANY,
        lambda border: not border.together,
        "it enters or leaves a graph together with other types",
    ),
    Need(ANY, lambda border: bool(border.lacks), lambda border: border.lacks),
)
"""The needs of a border's values, which come before the policy's wish."""

SOURCE_NEEDS: tuple[Need[bool], ...] = (
    Need(ANY, lambda is_default: is_default, "an input of an inner graph with a default"),
)
"""The needs of an initializer or input; the fact is whether it is such a default."""
