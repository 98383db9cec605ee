"""Marks that modules write on nodes for others: every key of mpcompile in ``node.meta``.

A mark is read and written like a dictionary whose keys are nodes::

    PACKED[node] = "arena0"
    arenas = [PACKED[node] for node in graph.nodes if node in PACKED]

Each mark names the modules that write it and those that read it. A test compares both lists with
the source, and checks that no other module uses one of these keys by its text. The lists leave out
`mpcompile.passes.invariants`, which checks the marks, and code that copies a whole ``meta``
(``new.meta = dict(old.meta)``) and so all marks.

torch has its own keys in the same dictionary. `TORCH` lists those that mpcompile uses, without a
mark, as in torch's documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, overload

from torch import fx

from mpcompile.plan.dataflow import Where

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Mark(Generic[T]):
    """One key of ``node.meta``.

    Attributes:
        key: the text under which torch keeps the value.
        writers: modules that set or remove it, without ``mpcompile.``.
        readers: modules that read it.
    """

    key: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]

    def __getitem__(self, node: fx.Node) -> T:
        value: T = node.meta[self.key]
        return value

    def __setitem__(self, node: fx.Node, value: T) -> None:
        node.meta[self.key] = value

    def __contains__(self, node: fx.Node) -> bool:
        return self.key in node.meta

    @overload
    def get(self, node: fx.Node) -> T | None: ...

    @overload
    def get(self, node: fx.Node, default: D) -> T | D: ...

    def get(self, node: fx.Node, default: object = None) -> object:
        """Return a node's value, or the default if it has none."""
        return node.meta.get(self.key, default)

    def setdefault(self, node: fx.Node, value: T) -> None:
        """Set the value of a node that has none."""
        node.meta.setdefault(self.key, value)

    def discard(self, node: fx.Node) -> None:
        """Remove the mark from a node if it is there."""
        node.meta.pop(self.key, None)

    def move(self, old: fx.Node, new: fx.Node) -> None:
        """Take the mark from a node, if it is there, and put it on another one."""
        if self.key in old.meta:
            new.meta[self.key] = old.meta.pop(self.key)


# The slot of a node.

SLOT: Mark[str] = Mark(
    "slot",
    writers=(
        "step.differentiate",
        "step.graph",
        "step.update",
    ),
    readers=(
        "lower.recompute",
        "numerics.lockstep",
        "numerics.naming",
        "passes.step.accumulate_gradients",
        "passes.step.drop_dead",
        "passes.step.lay_out_copies",
        "program.graph_text",
        "search.subgraph",
        "search.suspects",
        "show.of_step",
        "step.graph",
        "step.update",
    ),
)
"""On a placeholder of a step's graphs: the name of its slot."""

SLOTS: Mark[tuple[str, ...]] = Mark(
    "slots",
    writers=(
        "lower.lower",
        "passes.step.accumulate_gradients",
        "passes.step.hoist_weight_casts",
        "step.differentiate",
        "step.graph",
        "step.update",
        "step.whole_step",
    ),
    readers=(
        "lower.recompute",
        "onnx.plain_graph",
        "passes.step.drop_dead",
        "passes.step.hoist_weight_casts",
        "program.graph_text",
        "show.of_step",
        "step.graph",
        "step.whole_step",
    ),
)
"""On an output node of a step's graphs: the names of the slots of all results."""

# The origin of a node.

WHERE: Mark[Where] = Mark(
    "where",
    writers=("step.differentiate",),
    readers=(
        "lower.cuda_graph",
        "lower.lower",
        "numerics.node_errors",
        "numerics.nonfinite",
        "onnx.plain_graph",
        "program.graph_text",
        "search.reduced_program",
        "show.of_step",
        "speed.least_time",
    ),
)
"""On a node of the gradient graph: the user's module and source line that it comes from."""

PLANNED: Mark[str] = Mark(
    "planned",
    writers=(
        "numerics.eager_autocast",
        "passes.forward.insert_casts",
        "step.differentiate",
        "step.record",
    ),
    readers=(
        "numerics.eager_autocast",
        "numerics.naming",
        "search.suspects",
        "show.of_step",
        "step.record",
    ),
)
"""On a node of the gradient graph: the id of its op or cast in the plan."""

MADE_BY: Mark[str] = Mark(
    "pass",
    writers=(
        "pipeline",
        "step.record",
    ),
    readers=(
        "numerics.eager_autocast",
        "show.of_step",
        "step.record",
    ),
)
"""On each node: the name of the pass that has made it; "" if none has."""

BACKWARD: Mark[Literal[True]] = Mark(
    "backward",
    writers=(
        "passes.gradient.recompute_casts",
        "passes.gradient.save_narrow",
        "program.casts",
        "step.differentiate",
        "step.record",
    ),
    readers=(
        "numerics.eager_autocast",
        "numerics.naming",
        "numerics.node_errors",
        "numerics.nonfinite",
        "passes.forward.clean_casts",
        "passes.gradient.join_weight_gradients",
        "passes.gradient.recompute_casts",
        "passes.gradient.save_narrow",
        "program.casts",
        "search.suspects",
        "show.of_step",
        "show.summary",
        "speed.least_time",
        "step.liveness",
    ),
)
"""On each node of the gradient graph that is part of backward."""

TERMS: Mark[int] = Mark(
    "terms",
    writers=(
        "passes.gradient.join_weight_gradients",
        "passes.gradient.sum_in_full",
    ),
    readers=("show.of_step",),
)
"""On the result of a long sum that is added in FP32: how many terms it has."""

BACKWARD_SEED: Mark[Literal[True]] = Mark(
    "seed",
    writers=("step.differentiate",),
    readers=(
        "lower.recompute",
        "passes.step.scale_loss",
    ),
)
"""On the node that backward starts from, until `passes.step.scale_loss` replaces it."""

NO_GRAD: Mark[Literal[True]] = Mark(
    "no_grad",
    writers=("program.functional.grad_modes",),
    readers=(
        "program.functional.grad_modes",
        "program.functional.mutation",
    ),
)
"""On an op of an exported program that runs without gradients, until the graph is functional."""

EMULATES: Mark[str] = Mark(
    "emulates",
    writers=("passes.lowering.emulate_half",),
    readers=(
        "numerics.lockstep",
        "search.reduced_program",
        "search.subgraph",
    ),
)
"""In a graph of emulated 16 bits: the original node whose value the node has, or ""."""

# Notes of passes on the step graph for later passes; all on nodes of the update graph.

PACKED: Mark[str] = Mark(
    "packed",
    writers=(
        "passes.processes.reduce_packed",
        "passes.step.accumulate_gradients",
        "passes.step.pack_gradients",
        "passes.step.scale_loss",
    ),
    readers=(
        "passes.processes.reduce_packed",
        "passes.step.accumulate_gradients",
        "passes.step.clip_gradients",
        "passes.step.gate_update",
        "passes.step.scale_loss",
    ),
)
"""On the current FP32 gradient of an arena, after the passes so far: the arena's name."""

CLIPPED: Mark[Literal[True]] = Mark(
    "clipped",
    writers=("passes.step.clip_gradients",),
    readers=("passes.step.clip_gradients",),
)
"""On a clipped gradient of an arena, which only the optimizer reads."""

NORM: Mark[Literal["part", "total"]] = Mark(
    "norm",
    writers=(
        "passes.processes.share_norms",
        "passes.step.clip_gradients",
    ),
    readers=(
        "passes.processes.share_norms",
        "passes.step.clip_gradients",
        "passes.step.gate_update",
        "passes.step.report_outcome",
    ),
)
"""On the norm of the gradients, and on the norms per arena that it is made of."""

MEASURE: Mark[Literal[True]] = Mark(
    "measure",
    writers=(
        "passes.processes.share_norms",
        "passes.step.gate_update",
    ),
    readers=("passes.processes.share_norms",),
)
"""On the largest magnitude of an arena's gradient, which the gate compares with infinity."""

FINITE: Mark[Literal[True]] = Mark(
    "finite",
    writers=("passes.step.gate_update",),
    readers=(
        "passes.step.adjust_scale",
        "passes.step.count_steps",
        "passes.step.gate_update",
        "passes.step.report_outcome",
    ),
)
"""On the 0-d bool that says whether all gradients are finite."""

AVERAGED: Mark[Literal[True]] = Mark(
    "averaged",
    writers=("passes.processes.average_buffers",),
    readers=("passes.processes.average_buffers",),
)
"""On a buffer's next value that is the mean over the processes."""

GATHERED: Mark[str] = Mark(
    "gathered",
    writers=("passes.processes.gather_slices",),
    readers=("passes.processes.gather_slices",),
)
"""On a tensor gathered from the processes' slices of an arena: the arena's name."""

SHARED_NORM: Mark[Literal[True]] = Mark(
    "shared",
    writers=("passes.processes.share_norms",),
    readers=("passes.processes.share_norms",),
)
"""On a norm over the slices of all processes."""

MARKS: tuple[Mark[object], ...] = (
    SLOT, SLOTS, WHERE, PLANNED, MADE_BY, BACKWARD, TERMS, BACKWARD_SEED, NO_GRAD, EMULATES,
    PACKED, CLIPPED, NORM, MEASURE, FINITE, AVERAGED, GATHERED, SHARED_NORM,
)  # type: ignore[assignment]  # fmt: skip
"""All of them."""

TORCH = {
    "val": "the node's fake result: shape, dtype and device",
    "stack_trace": "the user's lines that made the node",
    "nn_module_stack": "the modules in whose forward the node was made",
    "example_value": "on nodes of a graph of Dynamo: as val",
    "grapharg": "on placeholders of a graph of Dynamo: where the value comes from",
    "recompute": "of AOTAutograd's partitioner: what is kept for backward",
}
"""torch's own keys that mpcompile uses."""
