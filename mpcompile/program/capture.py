"""Capture a training program's forward pass as an FX graph, and describe it to the planner."""

from __future__ import annotations

import copy
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, CompileError
from mpcompile.plan.dataflow import Fixed, Where
from mpcompile.program.batch_size import BatchSize, dynamic_shapes
from mpcompile.program.derivatives.own_backward import with_derivatives
from mpcompile.program.functional.broadcasts import split_broadcasts
from mpcompile.program.functional.mutation import make_functional
from mpcompile.program.inner_gradients import (
    ComputesGradients,
    RecordedProgram,
    in_a_transform,
    is_transformed,
)
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
from mpcompile.program.traced_program import TracedProgram, Watch
from mpcompile.program.value_checks import drop_value_checks
from mpcompile.program.workload import Workload
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tracing import DataDependent, children
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
    """

    module: fx.GraphModule
    inputs: tuple[Input, ...]
    written: tuple[str, ...]
    returns: ReturnedTree | None = None
    batch_size: BatchSize | None = None
    numbers: NumberInputs | None = None
    left: Left | None = None

    def constants(self) -> dict[str, torch.Tensor]:
        """Return, by placeholder, the buffers that forward never writes."""
        return {
            item.node: item.tensor
            for item in self.inputs
            if item.kind is InputKind.BUFFER and item.name not in self.written
        }


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


def export(
    module: TracedProgram, workload: Workload, open_dims: tuple[bool, ...] = ()
) -> torch.export.ExportedProgram:
    """Run `torch.export` and turn its exception into one sentence."""
    # A tensor that is twice in the batch would become one input.
    batch = tuple(value.clone() for value in (*workload.batch, *module.examples))
    try:
        with _quiet():
            fixed = (False,) * len(module.examples)
            shapes = dynamic_shapes((*open_dims, *fixed)) if open_dims else None
            return torch.export.export(module, batch, dynamic_shapes=shapes, strict=False)
    except CompileError:
        raise
    except Exception as error:
        if module.last.recording is not None:
            raise CannotCapture(first_line(error), user_position(error)) from error
        raise _refusal(error, batch, workload) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's own warnings and logged tracebacks; mpcompile reports the error itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        # torch prints its unfinished graph at a data-dependent branch.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refusal(error: Exception, batch: tuple[Any, ...], workload: Workload) -> Exception:
    if not isinstance(error, DataDependent):
        try:
            with torch.enable_grad():
                _run_copy(workload, batch)
        except Exception as eager:
            shapes = ", ".join(str(list(value.shape)) for value in batch)
            return BadInput(
                f"the program raises {type(eager).__name__} on the example batch of shapes "
                f"{shapes}: {first_line(eager)}",
                user_position(eager) or workload.origin,
                "give a batch that loss(model, *batch) accepts",
            )
    if _reads_packed_sequence(error):
        return CannotCapture(
            "a recurrent layer reads a packed sequence, whose shape depends on the batch",
            user_position(error) or workload.origin,
            "give the layer the padded tensor, and leave the padding out of the loss",
        )
    return CannotCapture(
        "the program cannot become one graph: "
        + (
            "Python control flow depends on the value of a tensor"
            if isinstance(error, DataDependent)
            else f"{type(error).__name__}: {first_line(error)}"
        ),
        user_position(error) or workload.origin,
        "use torch.where or torch.cond instead of if, and do not call .item() in the model"
        if isinstance(error, DataDependent)
        else "write this line with other operations",
    )


def _run_copy(workload: Workload, batch: tuple[Any, ...]) -> None:
    """Run the program on a copy of its model; not at all if the model cannot be copied."""
    try:
        model = copy.deepcopy(workload.model)
    except Exception:
        return
    workload.run(model, batch)


def _reads_packed_sequence(error: Exception) -> bool:
    """Whether an error was raised while a recurrent layer of torch read a packed sequence."""
    return any(
        frame.f_code.co_filename == torch.nn.modules.rnn.__file__
        and frame.f_locals.get("batch_sizes") is not None
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else "no message"


def user_position(error: BaseException) -> str | None:
    """Return ``file:line`` of the deepest frame outside torch and mpcompile, or None."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_foreign(frame.filename)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


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


def definition(function: Callable[..., Any] | None) -> str | None:
    """Return ``file:line`` of a function's definition, or None."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else None


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
        inputs.append(Input(node.name, kind, name, tensor))
    return tuple(inputs)


def source_position(node: fx.Node) -> Where:
    """Return the module and the user's source line that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    module = paths[-1].removeprefix("model").removeprefix(".") if paths else ""
    return Where(module, *users_line(node.meta.get("stack_trace") or "", is_foreign))
