"""Which ops have a 16-bit kernel on which target.

An op without a CUDA kernel runs on the CPU, with copies there and back. On a CPU, ONNX Runtime
runs an FP16 op without a kernel in FP32 and adds the casts, which is right. A model does not load
if an op has a kernel in neither format, or a BF16 op has none. ``bench/onnx/kernels.py`` checks
all this against an installed runtime.
"""

from __future__ import annotations

from enum import Enum
from functools import cache

import onnx
import onnx_ir as ir

from mpcompile.onnx_graph.kernel_table import TABLE
from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.values import is_standard
from mpcompile.precision import Precision

EXPANDED = "x"
"""The runtime replaces the op by its definition."""

AS_HELD = frozenset("Constant If Loop Scan SequenceMap".split())
"""Ops that take the formats of the tensor or the graphs that they hold."""

_ONLY_FULL = {"MeanVarianceNormalization": "its definition in ONNX adds an FP32 constant"}
"""Ops that ONNX allows in 16 bits, but that no runtime can run in 16 bits."""

_LETTERS = {Precision.FP16: "h", Precision.BF16: "b", Precision.FP32: "f"}


class Target(Enum):
    """Where a rewritten graph must run; the value is its name in flags."""

    CUDA = "cuda"
    CPU = "cpu"
    ANY = "any"


class Provider(Enum):
    """An execution provider of ONNX Runtime; the value is its column in the table."""

    CUDA = 0
    CPU = 1


class OnCpu(Enum):
    """What ONNX Runtime on a CPU does with an op in a format."""

    RUNS = "a kernel of its own"
    CASTS = "FP32, between casts"
    EXPANDS = "the ops of its definition"
    FAILS = "does not load"


def lacking(nest: Nest, opset: int, precision: Precision, target: Target) -> dict[str, str]:
    """Return, per node id, why no kernel of the target takes the format.

    Args:
        nest: a graph and the graphs inside it.
        opset: the version of ONNX's op set that the model imports.
        precision: the 16-bit format.
        target: `Target.ANY` needs ops that load on a CPU and do not leave the GPU for the format.
    """
    found = {}
    for node, _ in nest.visited():
        if not is_standard(node) or node.op_type in AS_HELD:
            continue
        why = _ONLY_FULL.get(node.op_type) or _lack(node.op_type, opset, precision, target)
        if not why and target is not Target.CUDA and _picks(node):
            why = "ONNX Runtime on a CPU scatters no largest or smallest in 16 bits"
        if why:
            found[nest.nodes[node]] = why
    return found


def _picks(node: ir.Node) -> bool:
    """Return whether a scatter keeps the largest or smallest number written to an index."""
    how = node.attributes.get("reduction")
    return node.op_type == "ScatterND" and how is not None and how.as_string() in ("max", "min")


def on_cpu(op_type: str, opset: int, precision: Precision) -> OnCpu:
    """Return what ONNX Runtime on a CPU does with an op in a format."""
    held = formats(Provider.CPU, op_type, opset)
    if _LETTERS[precision] in held:
        return OnCpu.RUNS
    if precision is Precision.FP16 and _LETTERS[Precision.FP32] in held:
        return OnCpu.CASTS
    # Each op of a definition has a kernel of its own, with casts around it.
    expands = EXPANDED in held and precision is not Precision.BF16
    return OnCpu.EXPANDS if expands else OnCpu.FAILS


@cache
def formats(provider: Provider, op_type: str, opset: int) -> str:
    """Return the formats that a provider has kernels for, as the table's letters; "" for none.

    Args:
        provider: whose kernels.
        op_type: an op of ONNX itself.
        opset: the version of ONNX's op set; the op's newest definition up to it counts.
    """
    try:
        version = onnx.defs.get_schema(op_type, opset).since_version
    except onnx.defs.SchemaError:
        return ""
    cells = _cells(provider).get(op_type, {})
    since = max((each for each in cells if each <= version), default=None)
    return cells[since].strip("-") if since is not None else ""


@cache
def _cells(provider: Provider) -> dict[str, dict[int, str]]:
    found = {}
    for line in TABLE.strip().splitlines():
        op_type, *columns = (part.strip() for part in line.split("|"))
        pairs = (cell.split(":") for cell in columns[provider.value].split() if cell != "-")
        found[op_type] = {int(version): letters for version, letters in pairs}
    return found


def _lack(op_type: str, opset: int, precision: Precision, target: Target) -> str:
    letter, short = _LETTERS[precision], precision.short
    cuda = formats(Provider.CUDA, op_type, opset)
    if target is Target.CUDA and letter not in cuda:
        return f"no CUDA kernel of {op_type} in op set {opset} takes {short}"
    if target is Target.ANY and letter not in cuda and _LETTERS[Precision.FP32] in cuda:
        return f"{op_type} in op set {opset} has a CUDA kernel for FP32 but none for {short}"
    if target is not Target.CUDA and on_cpu(op_type, opset, precision) is OnCpu.FAILS:
        return f"ONNX Runtime on a CPU cannot load {op_type} in op set {opset} in {short}"
    return ""
