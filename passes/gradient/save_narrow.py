"""Keep for backward the 16-bit copy that the plan stores, not the FP32 value behind it.

Softmax and similar ops compute in FP32 and store 16 bits. Autograd does not know the plan and keeps
the FP32 result. Paper, section 3.3: such ops read and write FP16.
"""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import PrecisionClass
from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.marks import BACKWARD
from mpcompile.program.node_tensors import count_of
from mpcompile.torch_private.ops import op_name

REDUCES = 16
"""How many terms a result has that stays FP32: its rounding is in the gradient of each of them."""
_REDUCING = (PrecisionClass.REDUCTION, PrecisionClass.WIDE)


def save_narrow(module: fx.GraphModule) -> int:
    """Let backward widen the stored 16-bit copy; return how many FP32 tensors are freed earlier.

    A tensor is changed only if forward reads its 16-bit copy anyway and only backward reads its
    FP32 value. The result of a reduction stays: it has few bytes, and backward takes the
    exponential of a logsumexp.

    Example:
        >>> def program(x, g):
        ...     y = torch.softmax(x, -1)
        ...     stored = y.half().relu()
        ...     return stored, torch.ops.aten._softmax_backward_data(g, y, -1, torch.float32)
        ...
        >>> module = graph(program, backward="_softmax_backward_data", x=f32(4), g=f32(4))
        >>> before_and_after(save_narrow, module)
        + _to_copy_default  f32[4]  _to_copy _to_copy dtype=f32
        - _softmax_backward_data  f32[4]  _softmax_backward_data g _softmax -1 f32
        + _softmax_backward_data  f32[4]  _softmax_backward_data g _to_copy_default -1 f32
    """
    freed = 0
    for narrow in [node for node in module.graph.nodes if is_cast(node)]:
        wide = source_of(narrow)
        late = [user for user in wide.users if user in BACKWARD]
        early = [user for user in wide.users if user not in BACKWARD]
        if (
            narrow in BACKWARD
            or wide.op == "placeholder"
            or not late
            or early != [narrow]
            or narrow.meta["val"].element_size() >= wide.meta["val"].element_size()
            or _reduces(wide)
        ):
            continue
        with module.graph.inserting_before(min(late)):
            again = module.graph.call_function(
                narrow.target,
                (narrow,),
                {"dtype": wide.meta["val"].dtype},
            )
        again.meta = {**narrow.meta, "val": wide.meta["val"]}
        BACKWARD[again] = True
        for user in late:
            user.replace_input_with(wide, again)
        freed += 1
    return freed


def _reduces(node: fx.Node) -> bool:
    """Whether a result is much smaller than a tensor it is made of, a Tensor-Core op's aside."""
    rule = TORCH_RULES.get(op_name(node))
    if rule is None or rule.precision_class not in _REDUCING:
        return False
    values = [item.meta.get("val") for item in node.all_input_nodes]
    sizes = [count_of(value) for value in values if isinstance(value, torch.Tensor)]
    return max(sizes, default=0) >= REDUCES * count_of(node.meta["val"])
