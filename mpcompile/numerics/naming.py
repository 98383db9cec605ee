"""What a person calls a node of a step, and which override would keep it out of 16 bits."""

from __future__ import annotations

import operator

from torch import fx

from mpcompile.program.casts import is_cast
from mpcompile.program.marks import BACKWARD, PLANNED, SLOT
from mpcompile.torch_private.ops import op_name


def made_by(node: fx.Node) -> str:
    """Return the op that makes a tensor, also one of several; of an input its slot's name."""
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, fx.Node)
    return str(SLOT.get(source) or op_name(source))


def kept_in_full(node: fx.Node) -> tuple[str, ...]:
    """Return the ops of the plan that have to be in FP32 for a node not to be in 16 bits."""
    if not is_cast(node):
        planned = PLANNED.get(node, "")
        return (planned,) if planned else ()
    readers = [user for user in node.users if user not in BACKWARD]
    return tuple(dict.fromkeys(name for user in readers for name in kept_in_full(user)))
