"""What rounding one tensor of an ONNX model to 16 bits does to an op that reads it.

Each sensitive node is a small model of its own, with one tensor rounded and all others exact. So is
each chain of up to four nodes that leads to it, as in `mpcompile.numerics.narrowing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from mpcompile.numerics.narrowing import FORMATS, LONGEST, distance
from mpcompile.onnx.sessions import CPU, Array, Output
from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.values import constant_of, is_full, is_standard
from mpcompile.plan.op_table import ONNX_RULES
from mpcompile.plan.ranges import Narrowing
from mpcompile.plan.rule import PrecisionClass, Sensitivity

_QUIET = 4


class OnnxNarrowings:
    """Measures the nodes of a graph, but not of graphs inside it.

    Attributes:
        needed: the values that a run must return besides FP32 results.
        found: per tensor and short name of a format, its worst reader.

    Args:
        nest: the graph, types inferred.
        opset: its version of ONNX's op set.
    """

    def __init__(self, nest: Nest, opset: int) -> None:
        self._nest, self._opset = nest, opset
        self.found: dict[str, dict[str, Narrowing]] = {}
        self._paths = [path for node in nest.inners[0].graph for path in _paths(node)]
        read = [value for _, nodes in self._paths for value in _read(nodes)]
        self.needed = [value for value in dict.fromkeys(read) if value.producer() is not None]
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}

    def measure(self, arrays: Mapping[str, Output]) -> None:
        """Measure one batch.

        Args:
            arrays: the values of the graph by name.
        """
        for index, (source, nodes) in enumerate(self._paths):
            given = {str(value.name): _array(value, arrays) for value in _read(nodes)}
            held = {name: array for name, array in given.items() if array is not None}
            if len(held) < len(given):
                continue
            if index not in self._sessions:
                self._sessions[index] = self._session(nodes)
            self._compare(self._sessions[index], held, source, nodes[-1])

    def _compare(
        self,
        session: onnxruntime.InferenceSession,
        given: dict[str, Array],
        source: ir.Value,
        reader: ir.Node,
    ) -> None:
        name = str(source.name)
        exact = _tensors(session.run(None, given))
        for precision, dtype in FORMATS.items():
            full = torch.from_numpy(np.array(given[name]))
            rounded = full.to(dtype).to(torch.float32).numpy()
            error = distance(_tensors(session.run(None, {**given, name: rounded})), exact)
            held = self.found.setdefault(self._nest.values[source], {})
            before = held.get(precision.short)
            if before is None or error > before.error:
                held[precision.short] = Narrowing(self._nest.nodes[reader], error)

    def _session(self, nodes: tuple[ir.Node, ...]) -> onnxruntime.InferenceSession:
        """Return a session of some nodes, all that they read from outside as inputs."""
        inputs = [_info(value) for value in _read(nodes)]
        outputs = [_info(value) for value in nodes[-1].outputs if value.name]
        protos = [ir.to_proto(node) for node in nodes]
        graph = onnx.helper.make_graph(protos, "part", inputs, outputs)
        opsets = [onnx.helper.make_opsetid("", self._opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(CPU))


def _paths(node: ir.Node) -> Iterator[tuple[ir.Value, tuple[ir.Node, ...]]]:
    """Yield the ways to a sensitive node: a tensor, then the nodes from it to the node itself."""
    rule = ONNX_RULES.get(node.op_type) if is_standard(node) else None
    if rule is None or rule.sensitivity is Sensitivity.HARMLESS or rule.name == "random":
        return
    if node.op_type in ("Cast", "CastLike") and is_full(node.outputs[0]):
        return
    for value in dict.fromkeys(v for v in node.inputs if _is_made(v)):
        assert value is not None
        nodes: tuple[ir.Node, ...] = (node,)
        yield value, nodes
        while len(nodes) < LONGEST - 1 and (before := _only_source(value)) is not None:
            maker = value.producer()
            assert maker is not None
            value, nodes = before, (maker, *nodes)
            yield value, nodes


def _is_made(value: ir.Value | None) -> bool:
    return is_full(value) and constant_of(value) is None


def _only_source(value: ir.Value) -> ir.Value | None:
    """Return the one tensor that harmless arithmetic computes a tensor from, beside constants."""
    node = value.producer()
    rule = ONNX_RULES.get(node.op_type) if node is not None and is_standard(node) else None
    if node is None or rule is None or rule.sensitivity is not Sensitivity.HARMLESS:
        return None
    if rule.precision_class in (PrecisionClass.TENSOR_CORE, PrecisionClass.UNTOUCHABLE):
        return None
    made = [item for item in node.inputs if _is_made(item)]
    return made[0] if len(made) == 1 and node.op_type != "Dropout" else None


def _read(nodes: tuple[ir.Node, ...]) -> list[ir.Value]:
    """Return what nodes read and do not make themselves."""
    inside = {value for node in nodes for value in node.outputs}
    read = [v for node in nodes for v in node.inputs if v is not None and v not in inside]
    return list(dict.fromkeys(read))


def _array(value: ir.Value, arrays: Mapping[str, Output]) -> Array | None:
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    found = arrays.get(str(value.name))
    return found if isinstance(found, np.ndarray) else None


def _tensors(results: list[Array]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(item)) for item in results]


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    dtype = value.dtype
    assert dtype is not None
    return onnx.helper.make_tensor_value_info(str(value.name), dtype.value, None)
