"""Names of a step's nodes for reports, and the overrides that keep a node out of 16 bits."""

from __future__ import annotations

import operator

from torch import fx

from mpcompile.program.casts import is_cast
from mpcompile.program.marks import BACKWARD, PLANNED, SLOT
from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.ops import op_name


def made_by(node: fx.Node) -> str:
    """Return the name of the op that makes a tensor; for an input the name of its slot."""
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, fx.Node)
    return str(SLOT.get(source) or op_name(source))


def kept_in_full(node: fx.Node) -> tuple[str, ...]:
    """Return the ops of the plan that must be in FP32 to keep a node out of 16 bits."""
    if not is_cast(node) and not _is_narrow_input(node):
        planned = PLANNED.get(node, "")
        return (planned,) if planned else ()
    readers = [user for user in node.users if user not in BACKWARD]
    return tuple(dict.fromkeys(name for user in readers for name in kept_in_full(user)))


def _is_narrow_input(node: fx.Node) -> bool:
    """Whether a node is a 16-bit copy of a weight: its readers decide that it is one."""
    value = node.meta.get("val")
    return node.op == "placeholder" and getattr(value, "dtype", None) in NARROW
