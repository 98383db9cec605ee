"""Keep for backward the 16-bit copy that the plan stores, not the FP32 value behind it.

Softmax and similar ops compute in FP32 and store 16 bits. Autograd does not know the plan and keeps
the FP32 result. Paper, section 3.3: such ops read and write FP16.
"""

from __future__ import annotations

from torch import fx

from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.marks import BACKWARD


def save_narrow(module: fx.GraphModule) -> int:
    """Let backward widen the stored 16-bit copy; return how many FP32 tensors are freed earlier.

    A tensor is changed only if forward reads its 16-bit copy anyway and only backward reads its
    FP32 value.

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
