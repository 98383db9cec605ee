"""Step graph to something that runs: FX's own generated code, or inductor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, did_you_mean
from mpcompile.lower.cuda_graph import obstacle
from mpcompile.lower.plain_calls import with_plain_calls
from mpcompile.lower.recompute import Recomputing
from mpcompile.lower.shared_memory import OwnMemory
from mpcompile.lower.update_numbers import split_numbers
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.passes.lowering.reshape_views import reshape_views
from mpcompile.program.control_flow import is_control_flow
from mpcompile.program.marks import SLOTS, WHERE
from mpcompile.step.graph import StepGraph, add_inputs, call, placeholders, results
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.inductor import Code, compiled, known_options
from mpcompile.torch_private.ops import is_view, op_name

Backend: TypeAlias = Literal["interpreter", "inductor"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """Two callables that share state by reference.

    Attributes:
        gradient: takes the tensors of `gradient_inputs`, returns those of `gradient_results`.
        update: takes the tensors of `update_inputs`, writes state in place, returns nothing.
        accumulate: takes the tensors of `accumulate_inputs` and does the same; None without such a
            graph.
        gradient_inputs: slot names in order.
        gradient_results: slot names in order; the loss is first.
        update_inputs: slot names in order.
        accumulate_inputs: slot names in order.
        obstacle: why a CUDA graph cannot hold both, or "".
    """

    gradient: Callable[..., Any]
    update: Callable[..., Any]
    accumulate: Callable[..., Any] | None
    gradient_inputs: tuple[str, ...]
    gradient_results: tuple[str, ...]
    update_inputs: tuple[str, ...]
    accumulate_inputs: tuple[str, ...]
    obstacle: str


def default_backend(device: torch.device) -> Backend:
    """Return ``inductor`` on CUDA and ``interpreter`` elsewhere."""
    return "inductor" if device.type == "cuda" else "interpreter"


@dataclass(frozen=True, slots=True)
class Lowering:
    """The choices for running a step graph.

    Attributes:
        backend: ``"interpreter"``, ``"inductor"``, or None: the device's default.
        memory_budget: for inductor's activations, see `mpcompile.lower.recompute.Recomputing`.
        cuda_graph: with inductor on CUDA, replay the whole step as one CUDA graph.
        options: of ``torch._inductor.config``.
    """

    backend: Backend | None = None
    memory_budget: float = 1.0
    cuda_graph: bool = True
    options: Mapping[str, Any] | None = None

    def backend_on(self, device: torch.device) -> Backend:
        """Return the requested backend, or the device's default."""
        return self.backend or default_backend(device)


def lower(step: StepGraph, device: torch.device, lowering: Lowering) -> Lowered:
    """Lower a step graph; the step graph itself stays as it is.

    ``interpreter`` on a device without Tensor Cores computes in pseudo FP16
    (`mpcompile.passes.lowering.emulate_half`) and keeps the tensors for backward that the graph
    keeps. ``inductor`` compiles both graphs at the first call, forward and backward of the gradient
    graph apart (`mpcompile.lower.recompute`). With an open batch size it compiles at once. The
    gradient graph of a program in pieces is two calls of Python, which are not compiled.

    Args:
        step: the step graph.
        device: the device of the model.
        lowering: the backend and its options.

    Raises:
        BadInput: there is no such backend, budget or option.
        CannotCapture: inductor cannot compile the gradient of this control flow, or for an open
            batch size.
    """
    backend, memory_budget = lowering.backend_on(device), lowering.memory_budget
    options = lowering.options
    if backend not in ("interpreter", "inductor"):
        raise BadInput(f"there is no backend {backend!r}", fix="choose 'interpreter' or 'inductor'")
    if not 0 < memory_budget <= 1:
        raise BadInput(
            f"memory_budget is {memory_budget}",
            fix="give the share of activations to keep: above 0, at most 1",
        )
    if options:
        _check_options(options)
    gradient = copy_graph(step.gradient)
    in_pieces = with_plain_calls(gradient.graph)
    compiles = backend == "inductor" and not in_pieces
    if compiles:
        _refuse_unknown_sizes(gradient.graph)
        separate_operands(gradient.graph)
    if backend == "interpreter" and device.type == "cpu" and not in_pieces:
        emulate_half(gradient)  # 16-bit arithmetic of the optimizer itself (Muon) stays
    if not compiles:
        reshape_views(gradient)
    gradient.graph.lint()
    gradient.recompile()
    assert gradient.code  # makes the code now; until then `forward` is a longer way to it
    inputs = tuple(placeholders(gradient.graph))
    made = tuple(results(gradient.graph))
    forward: Callable[..., Any] = gradient.forward
    if compiles:
        try:
            forward = Recomputing(gradient, step.slots, memory_budget, options=options)
        except Exception as error:  # it compiles now only if a batch size is open
            raise CannotCapture(
                f"inductor cannot compile the step for an open batch size ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]})",
                fix="choose backend='interpreter', or leave out dynamic=True",
            ) from error
    if device.type == "cuda":
        forward = full_accumulation()(forward)
    update, write = _lower_writes(step, step.update, backend, device, options)
    gather: Callable[..., Any] | None = None
    gathered: tuple[str, ...] = ()
    after = update
    if step.accumulation is not None:
        after, gather = _lower_writes(step, step.accumulation, backend, device, options)
        gathered = tuple(placeholders(after))
    stops = "the program runs in pieces" if in_pieces else obstacle(gradient.graph, after)
    return Lowered(
        forward, write, gather, inputs, made, tuple(placeholders(update)), gathered, stops
    )


def _lower_writes(
    step: StepGraph,
    module: fx.GraphModule,
    backend: Backend,
    device: torch.device,
    options: Mapping[str, Any] | None,
) -> tuple[fx.Graph, Callable[..., Any]]:
    """Lower a graph whose results are state; it then writes them in place."""
    module = copy_graph(module)
    if backend == "inductor" or device.type != "cpu":
        numbers_to_tensors(module)
    write_in_place(step, module)
    module.graph.lint()
    module.recompile()
    write: Callable[..., Any] = module.forward
    if backend == "inductor":
        write = _Compiled(module, options)
    if device.type == "cuda":
        write = full_accumulation()(write)
    return module.graph, write


@contextmanager
def full_accumulation() -> Iterator[None]:
    """Let cuBLAS accumulate 16-bit matmuls fully in FP32 (paper 3.3).

    By default it may join the parts of a long sum in 16 bits. The setting belongs to the process,
    so it is restored.
    """
    cublas = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    allowed = [name for name in names if getattr(cublas, name)]
    for name in allowed:
        setattr(cublas, name, False)
    try:
        yield
    finally:
        for name in allowed:
            setattr(cublas, name, True)


def separate_operands(graph: fx.Graph) -> None:
    """Give branches and loops copies of the weights they read.

    Weights share the memory of their arena, and torch traces no op that calls graphs on tensors
    that share memory. The interpreter does not need this.
    """
    for node in graph.nodes:
        if is_control_flow(node):
            for item in node.all_input_nodes:
                if (item.op == "placeholder" or is_view(item)) and item.meta["val"].dim():
                    with graph.inserting_before(node):
                        copied = call(graph, torch.ops.aten.clone.default, item)
                    node.replace_input_with(item, copied)


def _check_options(options: Mapping[str, Any]) -> None:
    known = known_options()
    for name in options:
        if name not in known:
            raise BadInput(
                f"inductor has no option {name!r}{did_you_mean(name, known)}",
                fix="torch._inductor.list_options() lists them",
            )


def _refuse_unknown_sizes(graph: fx.Graph) -> None:
    """Refuse graphs that inductor cannot compile, because it must know the size of kept tensors."""
    advice = "choose backend='interpreter'"
    for node in graph.nodes:
        name, where = op_name(node), WHERE.get(node)
        position = where.at if where else None
        if is_control_flow(node) and name == "while_loop_stack_output":
            what = "the gradient of a while loop"
            raise CannotCapture(
                f"inductor cannot compile {what}",
                position,
                f"{advice}, or use a scan of fixed length",
            )
        if name == "mkldnn_rnn_layer_backward":
            what = "the gradient of an FP32 LSTM on a CPU"
            raise CannotCapture(f"inductor cannot compile {what}", position, advice)


def write_in_place(step: StepGraph, update: fx.GraphModule) -> None:
    """Let the update write each result into its slot's own tensor, after all reads."""
    graph = update.graph
    values = results(graph)
    inputs = placeholders(graph)
    output = graph.output_node()
    missing = [step.slots[name] for name in values if name not in inputs]
    if missing:
        like = next(iter(inputs.values()))
        added = add_inputs(graph, missing, like)
        inputs |= {slot.name: node for slot, node in zip(missing, added, strict=True)}
    for name, node in values.items():
        with graph.inserting_before(output):
            call(graph, torch.ops.aten.copy_.default, inputs[name], node)
    output.args = ((),)
    SLOTS[output] = ()


class _Compiled:
    """An update that inductor compiles at its first call, for the tensors of that call."""

    def __init__(self, update: fx.GraphModule, options: Mapping[str, Any] | None) -> None:
        self._options = options
        self._numbers, self._rest = split_numbers(update)
        positions = {
            node.name: k for k, node in enumerate(update.graph.find_nodes(op="placeholder"))
        }
        self._read = [positions[n.name] for n in self._numbers.graph.find_nodes(op="placeholder")]
        self._own = OwnMemory()
        self._code: tuple[Code, Code] | None = None

    def __call__(self, *inputs: torch.Tensor) -> None:
        read = [inputs[position] for position in self._read]
        if self._code is None:
            options = self._options
            first: Code = _nothing
            if read:
                [(_, first)] = compiled(self._numbers, read, options=options)
            given = [*inputs, *self._own(first(list(read)), read)]
            [(_, rest)] = compiled(self._rest, given, options=options)
            self._code = first, rest
        first, rest = self._code
        rest([*inputs, *self._own(first(list(read)), read)])


def _nothing(_: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return nothing, for a graph without numbers."""
    return []
