"""Capture a training program's forward pass as an FX graph, and describe it to the planner."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, CompileError
from mpcompile.plan.dataflow import Fixed, Where
from mpcompile.program.batch_size import BatchSize
from mpcompile.program.complex_parameters import as_real, take_as_real
from mpcompile.program.derivatives.own_backward import with_derivatives
from mpcompile.program.functional.broadcasts import split_broadcasts
from mpcompile.program.functional.mutation import make_functional
from mpcompile.program.numbers.inputs import NumberInputs, NumberPlace
from mpcompile.program.returned import (
    Left,
    ReturnedTree,
    Spot,
    loss_last,
    stands_alone,
    tree_of_results,
)
from mpcompile.program.stack_lines import is_foreign, users_line
from mpcompile.program.tracing.export import definition, export
from mpcompile.program.tracing.inner_gradients import (
    ComputesGradients,
    RecordedProgram,
    in_a_transform,
    is_transformed,
)
from mpcompile.program.tracing.traced_program import TracedProgram, Watch
from mpcompile.program.tracing.value_checks import drop_value_checks
from mpcompile.program.workload import Workload
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tracing import children
from mpcompile.torch_private.versions import warn_if_untried


class InputKind(Enum):
    """The kind of an input of the forward graph."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    BATCH = "batch"
    NUMBER = "number"
    """A Python number of the program, see `mpcompile.program.numbers.inputs`."""

    @property
    def fixed(self) -> Fixed:
        """The planner's name for this kind."""
        return _FIXED[self]


_FIXED = {
    InputKind.PARAMETER: Fixed.PARAMETER,
    InputKind.BUFFER: Fixed.BUFFER,
    InputKind.BATCH: Fixed.BATCH,
    InputKind.NUMBER: Fixed.BUFFER,
}


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the forward graph.

    Attributes:
        node: name of its placeholder.
        kind: parameter, buffer (tensor constants of the model count as buffers) batch or number.
        name: dotted name in the model (``encoder.0.weight``), ``batch.0`` or ``number.0``.
        tensor: the user's own tensor; for a number a tensor of the capture.
    """

    node: str
    kind: InputKind
    name: str
    tensor: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """What the graph takes: the tensor, detached; of a complex parameter its parts."""
        value = self.tensor.detach()
        return as_real(value) if self.kind is InputKind.PARAMETER else value


@dataclass(frozen=True, slots=True)
class Forward:
    """A captured forward pass: composite ATen ops, without mutation.

    Attributes:
        module: the graph; its results are the next values of `written`, then the tensors that the
            loss function returns beside the loss, then the loss.
        inputs: its placeholders in order, a tied weight once.
        written: names of the buffers that the forward pass updates.
        returns: the results of the loss function if there are more than the loss; without a loss
            function the results of the model.
        batch_size: the open size of a batch in its shapes; None: it is the example's.
        numbers: how the inputs that are numbers are computed; None: there are none.
        left: what the program leaves in attributes; None: nothing, or it was not looked for.
        in_pieces: the program behind a graph of one op (`mpcompile.pieces`), or None.
    """

    module: fx.GraphModule
    inputs: tuple[Input, ...]
    written: tuple[str, ...]
    returns: ReturnedTree | None = None
    batch_size: BatchSize | None = None
    numbers: NumberInputs | None = None
    left: Left | None = None
    in_pieces: Any = None

    def constants(self) -> dict[str, torch.Tensor]:
        """Return, by placeholder, the buffers that forward never writes."""
        return {
            item.node: item.tensor
            for item in self.inputs
            if item.kind is InputKind.BUFFER and item.name not in self.written
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Return, by placeholder, the parameters."""
        return {item.node: item.value for item in self.inputs if item.kind is InputKind.PARAMETER}


def capture(
    workload: Workload,
    open_dims: tuple[bool, ...] = (),
    numbers: Sequence[NumberPlace] = (),
    watch: Watch | None = None,
    recorded: RecordedProgram | None = None,
) -> Forward:
    """Capture ``loss(model, *batch)`` with `torch.export`, or ``model(*batch)`` without a loss.

    Args:
        workload: the program.
        open_dims: per tensor of the batch whether its dimension 0 becomes a symbol; see
            `mpcompile.program.open_capture`.
        numbers: Python numbers of the program that become inputs of the graph.
        watch: finds the tensors that the program puts into the user's objects.
        recorded: the program as a graph, if it computes gradients itself.

    Raises:
        ComputesGradients: it does, and is not recorded.
        BadInput: the program itself fails on the example batch, or its loss is neither a 0-d FP32
            tensor nor a pair of one and anything.
        CannotCapture: the program runs, but not as one graph.
    """
    warn_if_untried()
    source = TracedProgram(workload, numbers, watch, recorded)
    with watch.around() if watch else nullcontext():
        try:
            program = export(source, workload, open_dims)
        except CompileError as error:
            if recorded is None and in_a_transform(error):
                raise ComputesGradients(error.where) from error
            raise
    if is_transformed(program):
        raise ComputesGradients(definition(workload.loss) or workload.origin)
    recording = source.last.recording
    given = None if recording is None else recording.inputs(source.examples)
    returns, left = _returns(program, workload, source.last.spots)
    _refuse_hidden_writes(program.graph, workload)
    trained = {
        f"model.{name}"
        for name, parameter in workload.model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    drop_value_checks(program.graph)
    functional = make_functional(program, trained, source.noted.own)
    program, module, written = functional.program, functional.module, functional.written
    with_derivatives(module.graph, source.noted.own)
    split_broadcasts(module.graph)
    _place_loss(module, workload)
    if workload.loss is not None:
        loss_last(module.graph, len(written))
    names = tuple(name.removeprefix("model.") for name in written)
    inputs = _inputs(program, module, (*workload.batch, *source.examples), workload)
    return Forward(module, inputs, names, returns, numbers=given, left=left)


def _returns(
    program: torch.export.ExportedProgram, workload: Workload, spots: tuple[Spot, ...]
) -> tuple[ReturnedTree | None, Left | None]:
    """Return the tree of a program's results, None if it is the loss alone; check the loss.

    The second tree is what the program leaves in places of the user's objects.
    """
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, list | tuple)
    defined_at = definition(workload.loss) or workload.origin
    users = [
        item
        for item, spec in zip(outputs, program.graph_signature.output_specs, strict=True)
        if spec.kind.name == "USER_OUTPUT"
    ]
    structure, left = program.call_spec.out_spec, None
    if spots:
        structure, others = children(structure)
        count = structure.num_leaves
        left = Left(spots, tree_of_results(others, users[count:]))
        users = users[:count]
    found = tree_of_results(structure, users)
    if workload.loss is None:
        return found, left
    advice = "return one 0-d FP32 tensor, or a pair of this tensor and any other value"
    try:
        alone = stands_alone(found)
    except ValueError as error:
        raise BadInput(f"the loss returns {error}", defined_at, advice) from None
    value = users[0].meta.get("val") if isinstance(users[0], fx.Node) else None
    if not isinstance(value, torch.Tensor):
        raise BadInput("the loss is not a tensor", defined_at, advice)
    if value.dim() != 0 or value.dtype is not torch.float32:
        raise BadInput(
            f"the loss is a {str(value.dtype).removeprefix('torch.')} tensor of shape "
            f"{list(value.shape)}",
            defined_at,
            "reduce it to one FP32 number, for example with .mean()",
        )
    return None if alone else found, left


def _refuse_hidden_writes(graph: fx.Graph, workload: Workload) -> None:
    """Refuse an instance norm that updates statistics: its schema does not declare this write."""
    for node in graph.nodes:
        if op_name(node) == "instance_norm" and isinstance(node.args[3], fx.Node) and node.args[5]:
            where = source_position(node)
            raise CannotCapture(
                f"the instance norm {where.module} updates running statistics",
                where.at or workload.origin,
                "create the layer with track_running_stats=False",
            )


def _place_loss(module: fx.GraphModule, workload: Workload) -> None:
    """Give ops of the loss function the line of its definition: torch leaves out its frames."""
    file, _, line = (definition(workload.loss) or "").rpartition(":")
    for node in module.graph.nodes:
        if file and node.op == "call_function" and not str(source_position(node)):
            trace = node.meta.get("stack_trace") or ""
            node.meta["stack_trace"] = f'{trace}\n  File "{file}", line {line}, in loss'


def _inputs(
    program: torch.export.ExportedProgram,
    module: fx.GraphModule,
    given: Sequence[torch.Tensor],
    workload: Workload,
) -> tuple[Input, ...]:
    """Name the placeholders; a parameter with two names keeps the first one.

    Given are the batch and, behind it, the inputs for numbers; unused ones of these are removed.
    """
    signature = program.graph_signature
    # Read once, because each access builds the dictionary again.
    parameters, buffers = signature.inputs_to_parameters, signature.inputs_to_buffers
    constants = signature.inputs_to_lifted_tensor_constants
    tensors: dict[str, torch.Tensor] = dict(workload.model.named_parameters(remove_duplicate=False))
    tensors |= dict(workload.model.named_buffers(remove_duplicate=False))
    inputs: list[Input] = []
    first: dict[int, fx.Node] = {}
    position = 0
    for node in list(module.graph.find_nodes(op="placeholder")):
        if node.name in parameters:
            kind, name = InputKind.PARAMETER, parameters[node.name]
        elif node.name in buffers:
            kind, name = InputKind.BUFFER, buffers[node.name]
        elif node.name in constants:
            kind, name = InputKind.BUFFER, constants[node.name]
        else:
            number = position - len(workload.batch)
            kind, name = InputKind.BATCH, f"batch.{position}"
            if number >= 0:
                kind, name = InputKind.NUMBER, f"number.{number}"
            if number < 0 or node.users:
                inputs.append(Input(node.name, kind, name, given[position]))
            else:
                module.graph.erase_node(node)
            position += 1
            continue
        constant = program.constants.get(name)
        name = name.removeprefix("model.")
        tensor = tensors.get(name, constant)
        assert isinstance(tensor, torch.Tensor)
        if id(tensor) in first:
            node.replace_all_uses_with(first[id(tensor)])
            module.graph.erase_node(node)
            continue
        first[id(tensor)] = node
        if kind is InputKind.PARAMETER and tensor.is_complex():
            take_as_real(module.graph, node)
        inputs.append(Input(node.name, kind, name, tensor))
    return tuple(inputs)


def source_position(node: fx.Node) -> Where:
    """Return the module and the user's source line that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    module = paths[-1].removeprefix("model").removeprefix(".") if paths else ""
    return Where(module, *users_line(node.meta.get("stack_trace") or "", is_foreign))
