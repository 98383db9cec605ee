"""Find out what each tensor of a graph is computed from."""

from __future__ import annotations

from enum import IntFlag

from mpcompile.plan.dataflow import Dataflow, Fixed, Op
from mpcompile.plan.op_table import rows_of
from mpcompile.plan.rule import PrecisionClass

_TENSOR_CORE = rows_of(PrecisionClass.TENSOR_CORE)
_SUMS = ("sum", "vector norm")
_FIXED = {Fixed.PARAMETER: 1, Fixed.BATCH: 2, Fixed.INPUT: 2}


class Origin(IntFlag):
    """What a tensor is computed from; 0 means constants and buffers alone."""

    PARAMETER = 1
    DATA = 2
    """The batch, or numbers that the program makes, such as positions and converted integers."""
    GRAM = 4
    """A Tensor-Core op that reads no weight and no layer's result, such as a kernel matrix."""
    LAYER = 8
    """Another Tensor-Core op."""
    SUM = 16
    """A sum, such as the squared length of a point."""


class Origins:
    """The origins of all tensors of a graph.

    Args:
        flow: the neutral graph. A tensor that is read before it is written comes from the last
            round of a loop, and counts as a layer's result.
    """

    def __init__(self, flow: Dataflow) -> None:
        self._found = {
            tensor.id: Origin(_FIXED.get(tensor.fixed, 0))
            for tensor in flow.tensors
            if tensor.fixed is not None and tensor.fixed is not Fixed.STATISTIC
        }
        sizes = {tensor.id: tensor.elements for tensor in flow.tensors}
        for op in flow.ops:
            origin = self.of(*op.reads)
            if op.rule in _TENSOR_CORE:
                rounded = origin & (Origin.PARAMETER | Origin.LAYER) or not op.reads
                origin |= Origin.LAYER if rounded else Origin.GRAM
            elif op.rule in _SUMS:
                origin |= Origin.SUM
            elif op.kind == "Initializer":
                origin = Origin.PARAMETER
            elif not op.reads and any(sizes.get(name, 0) > 1 for name in op.writes):
                # Exporters write the weights of an ONNX graph as Constant nodes too.
                origin = Origin.PARAMETER if op.kind == "Constant" else Origin.DATA
            for name in op.writes:
                self._found[name] = origin

    def of(self, *names: str) -> Origin:
        """Return the origins of some tensors together."""
        found = Origin(0)
        for name in names:
            found |= self._found.get(name, Origin.LAYER)
        return found


def is_tensor_core(op: Op) -> bool:
    """Whether the op table says that a Tensor Core runs an op."""
    return op.rule in _TENSOR_CORE
