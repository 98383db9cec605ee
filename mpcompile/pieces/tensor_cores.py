"""Whether a graph of Dynamo has anything that a Tensor Core could run, by the names of its calls.

A detector has dozens of pieces that compute with boxes. Their plan would leave them in FP32, and to
trace them into composite ops takes most of our time for them.
"""

from __future__ import annotations

import re

from torch import fx

from mpcompile.torch_private.ops import op_name

_PRODUCTS = re.compile(
    "linear|conv|mm|matmul|matrix|einsum|attention|dot|inner|mv|rnn|lstm|gru|cov|corr|linalg|lowrank"
    "|affine_grid|cdist|addr"
)
"""Parts of the names of all of torch's functions that multiply matrices."""
_KNOWN = ("torch", "_operator", "math", "builtins", "aten", "prims")


def may_use_tensor_cores(module: fx.GraphModule) -> bool:
    """Whether some call of a graph may multiply matrices; also true if a call is not known."""
    return any(map(_may_multiply, module.graph.nodes))


def _may_multiply(node: fx.Node) -> bool:
    if node.op == "call_method":
        return bool(_PRODUCTS.search(str(node.target)))
    if node.op != "call_function":
        return node.op == "call_module"
    home = getattr(node.target, "namespace", None) or getattr(node.target, "__module__", None)
    known = home is None or str(home).partition(".")[0] in _KNOWN
    return not known or bool(_PRODUCTS.search(op_name(node)))
