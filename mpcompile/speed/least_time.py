"""The least time of a step on a device: a lower bound, computed from the step's two graphs.

Each matmul-like node (`mpcompile.speed.flops`) is a kernel of its own. Every other node is *free*:
it is fused into a kernel that reads or writes its tensors, or computed again, and costs nothing
itself.

Tensors pass through memory between kernels. Let ``size(n)`` be the bytes of a node's result. On a
path of free nodes, one tensor must pass through memory:

- ``need(n)``, the least that a kernel reads to have `n`: ``size(n)`` for an input of the graph or a
  kernel's result, else ``min(size(n), max of need over its inputs)``  (`_needs`)
- ``pass(n)``, the least that a kernel writes of `n` for its sinks: the maximum, over its users, of
  ``size(n)`` for a sink and of ``pass(user)`` for a free node; at most ``size(n)``  (`_passes`)

A kernel ``k`` of the gradient graph, whose sinks are the other kernels and the graph's results, has

- ``reads(k) = sum of need`` over its operands; views of one storage count at most its size
  (`_reads`)
- ``writes(k) = pass(k)``  (`_writes`)
- ``flops(k)``: `mpcompile.speed.flops.least_flops`

The update graph has, besides its matmul-like nodes if any, two kernels  (`_update`): the *check*
reads what its full reductions need (a decision about all gradients comes before the first write),
the *update* reads each input and writes each result once. With AdamW and FP16 that is, per
parameter, 2 bytes for the check, and 14 read (master 4, moments 8, gradient 2) and 14 written
(master 4, moments 8, working copy 2).

With the device's arithmetic ``rate``, ``bandwidth`` and ``cache``

- ``memory(k) = (max(0, reads - cache) + max(0, writes - cache)) / bandwidth``: bytes that the
  kernel before left in the cache are not read, bytes that stay there are not written
  (`Kernel.memory`)
- ``time(k) = max(flops / rate(dtype), memory(k))``  (`Kernel.seconds`)
- ``bound = sum of time(k)`` over all kernels  (`Bound.seconds`)

The bound holds for every backend that meets four conditions: two matmul-like nodes are not one
kernel (a softmax between two matmuls is not turned into attention); gradient graph and update graph
run one after the other, and so do kernels; each operand is loaded by itself; products are computed
by their definition (no Winograd, no FFT). To stay below every program, the bound leaves out:
launches, tiles that do not divide, the reads and writes of free nodes (embeddings, norms, losses,
the loss curve's own results), and everything inside branches and loops. A device that runs above
the clock of its datasheet may beat the bound.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.plan.dataflow import Where
from mpcompile.program.marks import BACKWARD, WHERE
from mpcompile.program.node_tensors import count_of
from mpcompile.speed.devices import Device
from mpcompile.speed.flops import is_matmul_like, least_flops
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.liveness import storages, tensor_bytes
from mpcompile.torch_private.ops import given, is_view, op_name


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the bound.

    Attributes:
        name: the name of its node, or ``check`` or ``update``.
        kind: its op.
        stage: ``forward``, ``backward`` or ``update``.
        where: its source position in the user's program.
        dtype: the dtype of its operands.
        flops: floating-point operations.
        reads: bytes read.
        writes: bytes written.
    """

    name: str
    kind: str
    stage: str
    where: Where
    dtype: torch.dtype
    flops: int
    reads: int
    writes: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.reads + self.writes

    def arithmetic(self, device: Device) -> float:
        """Return the least seconds of arithmetic."""
        return self.flops / device.rate(self.dtype)

    def memory(self, device: Device) -> float:
        """Return the least seconds of memory traffic."""
        crossing = max(0, self.reads - device.cache) + max(0, self.writes - device.cache)
        return crossing / device.bandwidth

    def seconds(self, device: Device) -> float:
        """Return the least seconds, with arithmetic and traffic at the same time."""
        return max(self.arithmetic(device), self.memory(device))


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of a step on a device.

    Attributes:
        device: the device.
        kernels: the step's kernels in order.
    """

    device: Device
    kernels: tuple[Kernel, ...]

    @property
    def seconds(self) -> float:
        """The bound: `arithmetic`, `memory` and `update` together."""
        return self._sum(lambda _: True)

    @property
    def arithmetic(self) -> float:
        """Seconds of the kernels of forward and backward that arithmetic bounds."""
        return self._sum(lambda k: k.stage != "update" and not self.memory_bounds(k))

    @property
    def memory(self) -> float:
        """Seconds of the kernels of forward and backward that memory bounds."""
        return self._sum(lambda k: k.stage != "update" and self.memory_bounds(k))

    @property
    def update(self) -> float:
        """Seconds of the check and the update."""
        return self._sum(lambda k: k.stage == "update")

    @property
    def flops(self) -> int:
        """Floating-point operations of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    def memory_bounds(self, kernel: Kernel) -> bool:
        """Whether memory takes more time in a kernel than arithmetic."""
        return kernel.memory(self.device) > kernel.arithmetic(self.device)

    def largest(self, count: int) -> tuple[Kernel, ...]:
        """Return the kernels with the largest part of the bound."""
        order = sorted(self.kernels, key=lambda kernel: -kernel.seconds(self.device))
        return tuple(order[:count])

    def _sum(self, counts: Callable[[Kernel], bool]) -> float:
        return sum(kernel.seconds(self.device) for kernel in self.kernels if counts(kernel))


def bound(step: StepGraph, device: Device) -> Bound:
    """Return the least time of a step on a device.

    Args:
        step: the step graph from `mpcompile.pipeline.transform`.
        device: one of `mpcompile.speed.devices`.
    """
    return Bound(device, kernels(step))


def kernels(step: StepGraph) -> tuple[Kernel, ...]:
    """Return the kernels of a step in order, as the docstring of the module defines them."""
    return _gradient(step.gradient.graph) + _update(step.update.graph)


def _gradient(graph: fx.Graph) -> tuple[Kernel, ...]:
    own = _matmul_like(graph)
    return _kernels(graph, own, {*own, graph.output_node()}, "")


def _update(graph: fx.Graph) -> tuple[Kernel, ...]:
    own, output = _matmul_like(graph), graph.output_node()
    reductions = {node for node in graph.nodes if node not in own and _reduces_all(node)}
    made = _kernels(graph, own, {*own, *reductions}, "update")
    inputs = graph.find_nodes(op="placeholder")
    if reductions:
        passes = _passes(graph, reductions, stops=own)
        made += (_loop("check", sum(passes[node] for node in inputs), 0),)
    passes = _passes(graph, {output}, stops={*own, *reductions})
    made_here = [node for node in results(graph).values() if node.op != "placeholder"]
    reads, writes = sum(passes[node] for node in inputs), sum(map(_size, made_here))
    return (*made, _loop("update", reads, writes))


def _loop(name: str, reads: int, writes: int) -> Kernel:
    return Kernel(name, name, "update", Where(), torch.float32, 0, reads, writes)


def _kernels(
    graph: fx.Graph, own: Collection[fx.Node], sinks: Collection[fx.Node], stage: str
) -> tuple[Kernel, ...]:
    """Return the kernels of matmul-like nodes; the stage is forward or backward if not given."""
    bases, needs, passes = storages(graph), _needs(graph, own), _passes(graph, sinks)
    return tuple(
        Kernel(
            name=node.name,
            kind=op_name(node),
            stage=stage or ("backward" if node in BACKWARD else "forward"),
            where=WHERE.get(node) or Where(),
            dtype=node.all_input_nodes[0].meta["val"].dtype,
            flops=least_flops(node),
            reads=_reads(node, bases, needs),
            writes=_writes(node, passes),
        )
        for node in own
    )


def _matmul_like(graph: fx.Graph) -> dict[fx.Node, None]:
    """Return the matmul-like nodes in order."""
    return {
        node: None for node in graph.nodes if node.op == "call_function" and is_matmul_like(node)
    }


def _needs(graph: fx.Graph, own: Collection[fx.Node]) -> dict[fx.Node, int]:
    needs: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        part = node.target is operator.getitem and inputs[0] in own
        if node.op == "placeholder" or node in own or part:
            needs[node] = _size(node)
        else:
            needs[node] = min(_size(node), max((needs[item] for item in inputs), default=0))
    return needs


def _passes(
    graph: fx.Graph, sinks: Collection[fx.Node], stops: Collection[fx.Node] = ()
) -> dict[fx.Node, int]:
    """Return the bytes of each node's result that must be written for the sinks.

    Args:
        graph: the graph.
        sinks: nodes that read their operands from memory.
        stops: nodes that no path may pass.
    """
    passes: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        size = _size(node)
        onward = (
            size if user in sinks else 0 if user in stops else passes[user] for user in node.users
        )
        passes[node] = min(size, max(onward, default=0))
    return passes


def _reads(node: fx.Node, bases: dict[fx.Node, fx.Node], needs: dict[fx.Node, int]) -> int:
    together: dict[fx.Node, int] = defaultdict(int)
    for item in _operands(node):
        together[bases[item]] += needs[item]
    return sum(min(count, needs[base]) for base, count in together.items())


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a kernel reads."""
    if op_name(node) != "convolution_backward":
        return node.all_input_nodes
    options = given(node)
    for_input, for_weight, _ = options["output_mask"]
    read = {"grad_output": True, "input": for_weight, "weight": for_input}
    return [options[name] for name, wanted in read.items() if wanted]


def _writes(node: fx.Node, passes: dict[fx.Node, int]) -> int:
    if isinstance(node.meta["val"], list | tuple):  # its users are its items
        return sum(passes[part] for part in node.users)
    return passes[node]


def _reduces_all(node: fx.Node) -> bool:
    """Whether the node reduces a whole tensor to one number."""
    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and not is_view(node)
        and isinstance(value, torch.Tensor)
        and count_of(value) == 1
        and any(_elements(item) > 1 for item in node.all_input_nodes)
    )


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    return count_of(value) if isinstance(value, torch.Tensor) else 0


def _size(node: fx.Node) -> int:
    """Return the bytes of a node's result, summed over its tensors if it has several."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return tensor_bytes(value)
