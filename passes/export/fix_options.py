"""Make constants of an optimizer's options in a graph that is exported without the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.step.slots import Role, Slot

_READ = torch.ops.aten._local_scalar_dense.default


@dataclass(frozen=True)
class FixOptions:
    """Put the options' values into a graph; learning rates stay inputs.

    Attributes:
        step: the step whose options become constants.

    Example:
        >>> def momentum(weights, lr):
        ...     return torch.optim.SGD(weights, lr, momentum=0.9)
        ...
        >>> step = step_before("hoist_weight_casts", optimizer=momentum)
        >>> before_and_after(FixOptions(step), step.update)
        - group0_momentum  f64[]  input group0.momentum
        - _local_scalar_dense_1  number  _local_scalar_dense group0_momentum
        - mul  f32[32]  mul arena0_momentum_buffer _local_scalar_dense_1
        + mul  f32[32]  mul arena0_momentum_buffer 0.9
    """

    step: StepGraph

    def __call__(self, module: fx.GraphModule) -> int:
        """Return the number of options made constants, their inputs removed."""
        graph = module.graph
        fixed = 0
        for name, node in placeholders(graph).items():
            if not is_fixed(self.step.slots[name]):
                continue
            value = self.step.options[name]
            for user in list(node.users):
                if user.target is _READ:
                    _put(graph, user, value)
                else:
                    with graph.inserting_before(user):
                        made = graph.call_function(
                            torch.ops.aten.full.default, ([], value), {"dtype": torch.float64}
                        )
                    made.meta["val"] = node.meta["val"]
                    user.replace_input_with(node, made)
            graph.erase_node(node)
            fixed += 1
        graph.lint()
        return fixed


def is_fixed(slot: Slot) -> bool:
    """Whether a slot is an option other than a learning rate."""
    return slot.role is Role.HYPER and not slot.name.endswith(".lr")


def _put(graph: fx.Graph, number: fx.Node, value: float) -> None:
    """Replace a number by its value, and each number computed from it alone by its own value."""
    for user in list(number.users):
        user.args = fx.map_arg(user.args, lambda item: value if item is number else item)
        user.kwargs = fx.map_arg(user.kwargs, lambda item: value if item is number else item)
        number_too = isinstance(user.meta.get("val"), torch.SymFloat)
        if user.op == "call_function" and number_too and not user.all_input_nodes:
            assert callable(user.target)
            _put(graph, user, user.target(*user.args))
    graph.erase_node(number)
