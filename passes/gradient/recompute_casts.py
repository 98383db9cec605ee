"""Widen a 16-bit tensor again in backward instead of keeping its FP32 copy until then."""

from __future__ import annotations

from torch import fx

from mpcompile.program.casts import widens
from mpcompile.program.marks import BACKWARD


def recompute_casts(module: fx.GraphModule) -> int:
    """Give backward its own widening casts; return how many were repeated.

    A widening cast is exact, so only the size of the saved tensor changes: 2 bytes per number
    instead of 4.

    Example:
        >>> def program(x, g):
        ...     wide = x.float()
        ...     return wide.exp(), g * wide
        ...
        >>> before_and_after(recompute_casts, graph(program, backward="mul", x=f16(4), g=f32(4)))
        + _to_copy_1  f32[4]  _to_copy x dtype=f32
        - mul  f32[4]  mul g _to_copy
        + mul  f32[4]  mul g _to_copy_1
    """
    repeated = 0
    for cast in [node for node in module.graph.nodes if widens(node)]:
        late = [user for user in cast.users if user in BACKWARD]
        if not late or cast in BACKWARD:
            continue
        first = min(late)
        with module.graph.inserting_before(first):
            again = module.graph.node_copy(cast)
        again.meta = dict(cast.meta)
        BACKWARD[again] = True
        for user in late:
            user.replace_input_with(cast, again)
        repeated += 1
    if repeated:
        module.graph.eliminate_dead_code()
    return repeated
