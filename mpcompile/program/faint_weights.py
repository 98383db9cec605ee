"""Weights whose numbers are so small that FP16 keeps few of their digits.

The smallest normal FP16 number is 2^-14. Of smaller numbers FP16 keeps fewer than eleven binary
digits: of 1e-6, where the scale of a branch often begins (LayerScale, arXiv 2103.17239), five. A
product passes the relative error of its factors on. Autocast multiplies by such a weight in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from mpcompile.plan.op_table import TORCH_RULES, UNKNOWN
from mpcompile.plan.rule import PrecisionClass
from mpcompile.precision import Precision
from mpcompile.program.control_flow import nest_of
from mpcompile.program.node_tensors import is_full
from mpcompile.torch_private.ops import is_view, op_name
from mpcompile.torch_private.tensors import is_fake

_NORMAL = 2.0**-14
_FAINT = 2.0**-20
"""For a Tensor-Core op: of the largest number of the weight FP16 keeps five digits or fewer."""
_SAMPLE = 1024
_PRODUCTS = ("mul", "div")


def faint_reasons(
    module: fx.GraphModule, held: Mapping[str, torch.Tensor], precision: Precision
) -> dict[str, str]:
    """Return per op why it must not compute in 16 bits: its factor is a weight of tiny numbers.

    Args:
        module: an FP32 graph with ``meta["val"]`` on its nodes.
        held: by placeholder the weights and constant buffers.
        precision: the 16-bit format; BF16 has the range of FP32.
    """
    if precision is not Precision.FP16:
        return {}
    tiny = {name: most for name, value in held.items() if (most := _largest(value)) < _NORMAL}
    found: dict[str, str] = {}
    for node, op in nest_of(module).nodes.items() if tiny else ():
        if node.op != "call_function" or not is_full(node):
            continue
        read = [tiny[item.name] for item in node.all_input_nodes if item.name in tiny]
        if not read:
            continue
        if is_view(node):
            tiny[node.name] = read[0]
            continue
        tensor_core = TORCH_RULES.get(op_name(node), UNKNOWN).precision_class
        narrow = min(read) < _FAINT and tensor_core is PrecisionClass.TENSOR_CORE
        if narrow or op_name(node) in _PRODUCTS:
            found[op] = (
                f"it multiplies by a weight whose numbers are at most {min(read):g}, and FP16 "
                "keeps few digits of numbers below 6.1e-05"
            )
    return found


def _largest(value: torch.Tensor) -> float:
    """Return the largest magnitude; infinity if there is nothing to decide by."""
    if value.dtype is not torch.float32 or value.numel() == 0 or is_fake(value):
        return float("inf")
    if value.device.type == "meta":
        return float("inf")
    value = value.detach()
    for part in (value.reshape(-1)[:_SAMPLE], value):  # nearly always the first numbers decide
        most = float(torch.linalg.vector_norm(part, float("inf")))
        if most >= _NORMAL:
            break
    return most if most > 0.0 else float("inf")
