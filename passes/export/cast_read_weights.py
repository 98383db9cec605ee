"""Cast a read-only weight inside the step, if the graph is exported without the weight's copy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from mpcompile.program.casts import CAST
from mpcompile.step.graph import add_input, call, placeholders
from mpcompile.step.slots import Role, Slot


@dataclass(frozen=True)
class CastReadWeights:
    """Let a graph read weights instead of their shared copies.

    An exported graph holds each weight that it does not train once, in FP32.

    Attributes:
        slots: of the step, by name.

    Example:
        >>> step = step_before("lay_out_copies", before=nn.Linear(4, 4, bias=False))
        >>> before_and_after(CastReadWeights(step.slots), step.gradient)
        - before_weight_working  f16[4,4]  input before.weight.working
        + _to_copy_default  f16[4,4]  _to_copy before_weight dtype=f16
        - t  f16[4,4]  t before_weight_working
        + t  f16[4,4]  t _to_copy_default
    """

    slots: dict[str, Slot]

    def __call__(self, module: fx.GraphModule) -> int:
        """Return the number of copies that are casts now."""
        graph = module.graph
        made = 0
        for name, copy in placeholders(graph).items():
            if self.slots[name].role is not Role.SHARED:
                continue
            weight = self.slots[name.removesuffix(".working")]
            source = placeholders(graph).get(weight.name) or add_input(graph, weight, copy)
            first = next(node for node in graph.nodes if node.op != "placeholder")
            with graph.inserting_before(first):
                cast = call(graph, CAST, source, dtype=self.slots[name].dtype)
            copy.replace_all_uses_with(cast)
            graph.erase_node(copy)
            made += 1
        graph.lint()
        return made
