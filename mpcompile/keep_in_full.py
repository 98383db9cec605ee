"""Which override would keep a node of a step out of 16 bits."""

from __future__ import annotations

from torch import fx

from mpcompile.passes.clean_casts import is_cast


def kept_in_full(node: fx.Node) -> tuple[str, ...]:
    """Return the ops of the plan that have to be in FP32 for a node not to be in 16 bits."""
    if not is_cast(node):
        planned = str(node.meta.get("planned", ""))
        return (planned,) if planned else ()
    readers = [user for user in node.users if not user.meta.get("backward")]
    return tuple(dict.fromkeys(name for user in readers for name in kept_in_full(user)))
