"""Find what the program itself asks to compute in FP32.

The program runs in FP32, so its ``x.float()`` changes nothing and says something: what follows was
not meant to be rounded. `torch.export` records the call as a cast from FP32 to FP32.
``x.to(other.dtype)`` is recorded in the same way and means the opposite. Only the source line
tells them apart. torch records lines of ``forward`` methods alone, so in a plain function that one
calls the wish is not seen.
"""

from __future__ import annotations

import linecache
import re

from torch import fx

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import PrecisionClass
from mpcompile.program.capture import source_position
from mpcompile.program.derivatives.own_backward import OwnBackward, body_of
from mpcompile.program.node_tensors import is_full
from mpcompile.torch_private.ops import op_name

_SAYS_FP32 = re.compile(r"\.float\(\)|\bfloat32\b|\btorch\.float\b")
_CASTS = frozenset(TORCH_RULES["to"].torch.split())


def asked_wide(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Return, by node, why the program wants it in FP32.

    A wish for FP32 goes on through arithmetic and views until a Tensor-Core op reads the value, or
    until the program casts it to the dtype of another tensor.

    Args:
        module: an FP32 graph with ``meta["val"]`` and source positions on its nodes.
    """
    found = {
        op: f"the autograd Function {node.target.name} asks for FP32"
        for node in module.graph.nodes
        if isinstance(node.target, OwnBackward) and node.target.fp32
        for op in body_of(node)
    }
    wishes: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if op_name(node) in _CASTS:
            at = _says_fp32(node)
            if at:
                wishes[node] = f"the program asks for FP32 at {at}"
            continue
        rule = TORCH_RULES.get(op_name(node))
        if rule is not None and rule.precision_class is PrecisionClass.TENSOR_CORE:
            continue
        reason = next((wishes[item] for item in node.all_input_nodes if item in wishes), None)
        if reason is not None:
            wishes[node] = reason
    return wishes | found


def _says_fp32(node: fx.Node) -> str:
    """Return the source line of a cast that asks for FP32, or ""."""
    where = source_position(node)
    if not is_full(node) or where.at is None:
        return ""
    code, _, _ = linecache.getline(where.file, where.line).partition("#")
    return where.at if _SAYS_FP32.search(code) else ""
