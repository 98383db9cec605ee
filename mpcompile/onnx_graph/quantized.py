"""Regions of an ONNX graph that are already quantised and that runtimes run in integers."""

from __future__ import annotations

from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.values import is_standard

_WHY = "it belongs to a quantised region, which runs in integers"
_INTO, _OUT = "QuantizeLinear", "DequantizeLinear"


def quantized_regions(nest: Nest) -> dict[str, str]:
    """Return, per id of a node between dequantising and quantising, why it stays in FP32.

    A runtime recognises a quantised op by the DequantizeLinear before it and the QuantizeLinear
    after it; a cast between them would break the pattern.
    """
    found = {}
    for node, _ in nest.visited():
        makers = (value.producer() for value in node.inputs if value is not None)
        readers = [reader for value in node.outputs for reader in value.consumers()]
        reads = any(maker is not None and maker.op_type == _OUT for maker in makers)
        feeds = bool(readers) and all(reader.op_type == _INTO for reader in readers)
        if is_standard(node) and (reads or feeds):
            found[nest.nodes[node]] = _WHY
    return found
