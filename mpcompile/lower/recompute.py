"""Let backward compute cheap tensors again: the gradient graph in two halves, cut by torch.

As one graph, forward and backward reach inductor as a graph for inference: no step chooses the
tensors that are kept between them, and inductor fuses copies that only backward reads into kernels
of forward, where they stay alive. So the graph is passed as a function with its
derivative. AOTAutograd traces both halves into the joint graph, torch's
`min_cut_rematerialization_partition` chooses what to keep, and inductor compiles the halves as in
any training program: saved tensors in the layout their readers want, each freed at its last use.
Weights, copies, buffers and the batch cost nothing to keep. Random numbers are not drawn again.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.lower.cut import Cut, choose
from mpcompile.lower.shared_memory import OwnMemory
from mpcompile.program.marks import BACKWARD_SEED, SLOT, SLOTS
from mpcompile.program.node_tensors import sizes_read
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.graphs import copy_graph, module_of
from mpcompile.torch_private.inductor import Code, compiled
from mpcompile.torch_private.tensors import fake_with


@dataclass(frozen=True)
class Halves:
    """A gradient graph before the cut.

    Attributes:
        forward: takes the inputs; returns the results that do not depend on the seed, the loss
            first, then all other tensors that `backward` reads besides the inputs.
        backward: takes these tensors, the inputs and the seed; returns the gradients.
        early: indices of forward's results among the results of the gradient graph.
        late: indices of the gradients among these results.
        like: per gradient a fake tensor.
        scale: index of the seed among the inputs; None: the seed is 1.
        constants: tensors that the graph holds; they follow the inputs.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    early: tuple[int, ...]
    late: tuple[int, ...]
    like: tuple[torch.Tensor, ...]
    scale: int | None
    constants: tuple[torch.Tensor, ...]


def split(gradient: fx.GraphModule, slots: dict[str, Slot]) -> Halves:
    """Split a gradient graph at its seed, which becomes an input; the graph stays as it is.

    Backward is every node that depends on the seed; the cut assigns all other nodes.

    Args:
        gradient: its seed has the mark `BACKWARD_SEED` or is the loss scale.
        slots: of the step, by name.
    """
    module = copy_graph(gradient)
    graph, output = module.graph, module.graph.output_node()
    roles = [slots[SLOT[node]].role for node in graph.find_nodes(op="placeholder")]
    scale = roles.index(Role.SCALE) if Role.SCALE in roles else None
    constants = _take_constants(module)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    seed = _take_seed(graph, None if scale is None else inputs[scale])
    late = {seed}
    for node in graph.nodes:
        if node.op == "call_function" and late.intersection(node.all_input_nodes):
            late.add(node)
    names: tuple[str, ...] = SLOTS[output]
    results: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    gradients = [index for index, name in enumerate(names) if slots[name].role is Role.GRADIENT]
    others = [index for index in range(len(names)) if index not in gradients]
    made = [results[index] for index in gradients]
    sizes = sizes_read(late)
    carried = [
        node
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
        if node not in late
        if node in made or late.intersection(node.users) or sizes.intersection(node.users)
    ]
    early = [node for node in graph.nodes if node not in late and node.op != "output"]
    # Both have the branches of control flow, and sizes that are no fixed numbers.
    named = [node for node in graph.nodes if node.op == "get_attr" or node in sizes]
    return Halves(
        _part(module, inputs, early, [*(results[index] for index in others), *carried]),
        _part(module, [*carried, *inputs, seed], [*named, *late], made),
        tuple(others),
        tuple(gradients),
        tuple(node.meta["val"] for node in made),
        scale,
        constants,
    )


def _take_constants(module: fx.GraphModule) -> tuple[torch.Tensor, ...]:
    """Turn the tensors that a graph holds into inputs, behind the other inputs."""
    found = []
    last = module.graph.find_nodes(op="placeholder")[-1]
    for node in module.graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target))
        if isinstance(value, torch.Tensor):
            with module.graph.inserting_after(last):
                last = module.graph.placeholder(f"held_{node.name}")
            last.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(last)
            module.graph.erase_node(node)
            found.append(value)
    return tuple(found)


def _take_seed(graph: fx.Graph, scale: fx.Node | None) -> fx.Node:
    """Let backward start from its own input."""
    old = scale or next(node for node in graph.nodes if node in BACKWARD_SEED)
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        seed = graph.placeholder("seed")
    seed.meta["val"] = old.meta["val"]
    old.replace_all_uses_with(seed)
    return seed


def _part(
    module: fx.GraphModule,
    inputs: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    results: Sequence[fx.Node],
) -> fx.GraphModule:
    """Return a part of a graph: the nodes, which may be unsorted, from inputs to results."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for old, new in copies.items():
        new.meta = dict(old.meta)
    for node in sorted(set(nodes) - set(copies)):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    graph.eliminate_dead_code()
    graph.lint()
    return module_of(graph, module)


class _Derivative(torch.autograd.Function):
    """The function that AOTAutograd traces: `Halves` with a known derivative.

    The gradients are those of stand-ins, which come first: a weight's own gradient need not have
    the dtype of the copy that forward reads.
    """

    @staticmethod
    def forward(ctx: Any, halves: Halves, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = values[len(halves.late) :]
        made = halves.forward(*inputs)
        results = made[: len(halves.early)]
        ctx.halves = halves
        ctx.save_for_backward(*made[len(results) :], *inputs)
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, seed: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.halves.backward(*ctx.saved_tensors, seed)
        inputs = len(ctx.needs_input_grad) - 1 - len(gradients)
        return (None, *gradients, *[None] * inputs)


class _Function(torch.nn.Module):
    """Forward of `_Derivative` as a module, which a graph can call."""

    def __init__(self, halves: Halves) -> None:
        super().__init__()
        self.halves = halves

    def forward(self, *values: torch.Tensor) -> Any:
        """Return forward's results."""
        return _Derivative.apply(self.halves, *values)  # type: ignore[no-untyped-call]

    def called(self, inputs: int) -> fx.GraphModule:
        """Return a call of it as a graph."""
        graph = fx.Graph()
        values = tuple(graph.placeholder(f"input{index}") for index in range(inputs))
        made = graph.call_module("function", values)
        results = range(len(self.halves.early))
        graph.output(tuple(graph.call_function(operator.getitem, (made, k)) for k in results))
        return fx.GraphModule({"function": self}, graph)


def cut(gradient: fx.GraphModule, slots: dict[str, Slot], memory_budget: float = 1.0) -> Cut:
    """Return the halves that would be compiled, without making code; no tensor needs values.

    Args:
        gradient: as for `split`.
        slots: of the step, by name.
        memory_budget: as for `Recomputing`.
    """
    halves = split(gradient, slots)
    values = [node.meta["val"] for node in halves.forward.graph.find_nodes(op="placeholder")]
    return _compile(halves, values, memory_budget, run_as_traced=True).cut


@dataclass(frozen=True)
class _Code:
    """The two halves, ready to run.

    Attributes:
        cut: the compiled graphs.
        forward: the code of forward.
        backward: the code of backward.
        stand_ins: forward's first inputs, which it does not read.
        carried: indices of backward's inputs among forward's results, without the last, the seed.
    """

    cut: Cut
    forward: Code
    backward: Code
    stand_ins: list[torch.Tensor]
    carried: list[int]

    def __call__(
        self, values: Sequence[torch.Tensor], seed: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return forward's results and the gradients."""
        made = list(self.forward([*self.stand_ins, *values]))
        early = made[: self.cut.results]
        inputs = [made[index] for index in self.carried]
        made.clear()  # frees the tensors that backward has read
        inputs.append(seed)
        return early, list(self.backward(inputs))


class Recomputing:
    """A gradient graph that inductor compiles in two halves, for its inputs of the first call.

    If a batch size is open it compiles at once, so that its guards on sizes apply to every call.
    No input may require a gradient.

    Args:
        gradient: its seed has the mark `BACKWARD_SEED` or is the loss scale.
        slots: of the step, by name.
        memory_budget: in (0, 1]: ``torch._functorch.config.activation_memory_budget``. At 1, ops
            that fuse into kernels of backward are computed again; below 1 more ops, up to matmuls,
            until the kept tensors need only this part of their bytes at 1.
        options: options of inductor.
        run_as_traced: run the nodes of both halves one by one instead of compiling them.
    """

    def __init__(
        self,
        gradient: fx.GraphModule,
        slots: dict[str, Slot],
        memory_budget: float = 1.0,
        *,
        options: Mapping[str, Any] | None = None,
        run_as_traced: bool = False,
    ) -> None:
        self._halves = split(gradient, slots)
        self._budget, self._options = memory_budget, options
        self._run_as_traced = run_as_traced
        self._code: _Code | None = None
        self._own = OwnMemory()
        self._one = torch.ones(())
        if likes := _open_examples(self._halves):
            self._prepare(likes)

    @property
    def cut(self) -> Cut | None:
        """The compiled graphs, after the first call."""
        return self._code.cut if self._code else None

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradient graph's results in order; none shares memory with an input."""
        halves = self._halves
        values = [*inputs, *halves.constants]
        code = self._code or self._prepare(values)
        seed = self._one if halves.scale is None else values[halves.scale]
        early, late = code(values, seed)
        results = dict(zip(halves.early, early, strict=True))
        results |= zip(halves.late, late, strict=False)  # then Nones, for inputs without gradient
        return self._own([results[index] for index in range(len(results))], values)

    def _prepare(self, values: Sequence[torch.Tensor]) -> _Code:
        """Compile for inputs like these."""
        self._one = self._one.to(values[0].device)
        self._code = _compile(
            self._halves,
            values,
            self._budget,
            options=self._options,
            run_as_traced=self._run_as_traced,
        )
        return self._code


def _open_examples(halves: Halves) -> list[torch.Tensor]:
    """Return fake examples of the inputs if a batch size is open, else none."""
    likes = [node.meta["val"] for node in halves.forward.graph.find_nodes(op="placeholder")]
    if not any(isinstance(size, torch.SymInt) for like in likes for size in like.shape):
        return []
    return [fake_with(like, likes).detach() for like in likes]


def _compile(
    halves: Halves,
    values: Sequence[torch.Tensor],
    memory_budget: float,
    *,
    options: Mapping[str, Any] | None = None,
    run_as_traced: bool,
) -> _Code:
    """Trace, cut and compile, with the choices of `Recomputing`.

    Args:
        halves: before the cut.
        values: examples of the inputs.
        memory_budget: as there.
        options: as there.
        run_as_traced: as there.
    """
    cuts: list[Cut] = []

    def partition(joint: fx.GraphModule, results: int) -> tuple[fx.GraphModule, fx.GraphModule]:
        cuts.append(choose(joint, results, memory_budget))
        return cuts[0].forward, cuts[0].backward

    stand_ins = [  # of the shape and dtype of each gradient; without memory
        torch.empty((), dtype=like.dtype, device=values[0].device)
        .expand(like.shape)
        .requires_grad_()
        for like in halves.like
    ]
    inputs = [*(fake_with(value, values) for value in stand_ins), *values]
    function = _Function(halves).called(len(inputs))
    (forward, forth), (backward, back) = compiled(
        function, inputs, partition, options=options, run_as_traced=run_as_traced
    )
    made: Any = forward.output_node().args[0]
    indices = {node.name: index for index, node in enumerate(made) if node is not None}
    *kept, seed = [node.name for node in backward.find_nodes(op="placeholder")]
    assert seed.startswith("tangents")
    return _Code(cuts[0], forth, back, stand_ins, [indices[name] for name in kept])
