"""Make a captured forward graph functional: no op writes to a tensor, buffers become results."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from mpcompile.errors import CannotCapture
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.derivatives.own_backward import OP as OWN_BACKWARD
from mpcompile.program.derivatives.own_backward import OwnBackward, place_hooks
from mpcompile.program.functional.grad_modes import inline_grad_modes
from mpcompile.program.functional.view_writes import can_write, root_of, source_of, write
from mpcompile.program.marks import NO_GRAD
from mpcompile.program.stack_lines import is_foreign, users_line
from mpcompile.torch_private.graphs import module_of, note_readers
from mpcompile.torch_private.ops import functional_overload, is_view, mutated_inputs

_ATEN = torch.ops.aten
_STATE_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


@dataclass(frozen=True, slots=True)
class Functional:
    """A program without mutation.

    Attributes:
        program: its signature describes the graph's inputs.
        module: the graph; its first results are the next values of `written`.
        written: names of the buffers and parameters that the program writes to.
    """

    program: torch.export.ExportedProgram
    module: fx.GraphModule
    written: tuple[str, ...]


def make_functional(
    program: torch.export.ExportedProgram, trained: Collection[str], own: list[OwnBackward]
) -> Functional:
    """Return a program without mutation.

    An in-place op becomes its functional twin, and later readers of the tensor read the result; see
    also `view_writes` beside this file. Where that is unsafe, torch's own functionalization does
    it, at the cost of a second trace.

    A write to a tensor of the batch changes what the program reads later, and not the batch.

    A write without gradients (see `grad_modes` beside this file) to a tensor that requires one
    changes its value, and its gradient stays that of the tensor before the write.

    Args:
        program: as exported; it is changed.
        trained: names of the parameters that require a gradient.
        own: the program's derivatives by key; such writes add to them.

    Raises:
        CannotCapture: the program writes in a way that no graph without mutation can express.
    """
    graph = program.graph
    signature = program.graph_signature
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    note_readers(graph)
    requires = inline_grad_modes(
        program.graph_module, {node for node, name in state.items() if name in trained}
    )
    place_hooks(graph, own)
    order = {node: position for position, node in enumerate(graph.nodes)}
    inside = [
        node for module in all_graphs(program.graph_module)[1:] for node in module.graph.nodes
    ]

    def possible(node: fx.Node) -> bool:
        return _safe(node, order) or _safe_in_views(node, order, requires)

    if not all(map(possible, order)) or any(map(mutated_inputs, inside)):
        for node in order:
            # Torch would let gradients through such a write, which concerns no state.
            if node in NO_GRAD and _safe(node, order) and _base(node).op != "placeholder":
                for target in mutated_inputs(node):
                    if target in requires:
                        _replace_write(node, target, requires, order, own)
        for node in order:
            _refuse_hidden(node, requires)
        return _by_torch(program)
    newest: dict[str, fx.Node] = {}
    whole: set[fx.Node] = set()
    for node in list(order):
        if node.target is _ATEN.batch_norm.default and _updates_statistics(node):
            for target, value in _functional_norm(graph, node):
                _replace_later(target, value, node, order)
                newest[_name_of(target, newest, state)] = value
            graph.erase_node(node)
            continue
        for target in mutated_inputs(node):
            if _safe(node, order):
                value = _replace_write(node, target, requires, order, own)
            else:
                target = root_of(target, whole)
                value, made = write(node, order, whole)
                whole.add(value)
                order |= dict.fromkeys(made, order[node])
                requires.update({value, *made} if {node, target} & requires else ())
            if target.name in state or target in newest.values():
                newest[_name_of(target, newest, state)] = value
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, list | tuple)
    output.args = ((*newest.values(), *returned),)
    graph.lint()
    return Functional(program, module_of(graph, program.graph_module), tuple(newest))


def _replace_write(
    node: fx.Node,
    target: fx.Node,
    requires: set[fx.Node],
    order: dict[fx.Node, int],
    own: list[OwnBackward],
) -> fx.Node:
    """Turn an op that writes into its functional twin; return the written value."""
    value = node
    if node in NO_GRAD and target in requires:
        value = _functional_write(node, target, own)
        requires.add(value)
    twin = functional_overload(node)
    assert twin is not None
    node.target = twin
    node.kwargs = {name: given for name, given in node.kwargs.items() if name != "out"}
    _replace_later(target, value, node, order)
    return value


def _base(node: fx.Node) -> fx.Node:
    """Return the tensor that an op, or a chain of ops, writes to."""
    while node.op == "call_function":
        written = mutated_inputs(node)
        if not written:
            return node
        node = written[0]
    return node


def _functional_write(node: fx.Node, target: fx.Node, own: list[OwnBackward]) -> fx.Node:
    """Return the written value as a node whose gradient goes to the tensor before the write."""
    graph = node.graph
    with graph.inserting_before(node):
        before = graph.call_function(_ATEN.detach.default, (target,))
    before.meta = {**target.meta}
    node.replace_input_with(target, before)
    with graph.inserting_after(node):
        call = graph.call_function(OWN_BACKWARD, ([node], [target], [], len(own)))
    with graph.inserting_after(call):
        value = graph.call_function(operator.getitem, (call, 0))
    call.meta = {**node.meta, "val": [node.meta["val"]]}
    value.meta = {**node.meta}
    dtype = node.meta["val"].dtype
    own.append(OwnBackward("write", lambda _, given: given, (dtype,), is_hook=False))
    node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not call)
    return value


def _refuse_hidden(node: fx.Node, requires: Collection[fx.Node]) -> None:
    """Refuse the writes that torch's functionalization would get wrong."""
    for target in mutated_inputs(node):
        base = target
        while base.op == "call_function" and is_view(base) and base.all_input_nodes:
            base = base.all_input_nodes[0]
        where = users_line(node.meta.get("stack_trace") or "", is_foreign)
        at = f"{where[0]}:{where[1]}" if where[0] else None
        if node in NO_GRAD and base in requires:
            raise CannotCapture(
                "a part of a tensor that requires a gradient is written without gradients",
                at,
                "write a new tensor instead, for example with torch.where",
            )


def _safe(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether the node writes to no tensor, or only to tensors of which no view is read later."""
    return all(
        functional_overload(node) is not None
        and not is_view(target)
        and (target.target is not operator.getitem or source_of(target) is None)
        and not _view_read_after(target, node, order)
        for target in mutated_inputs(node)
    )


def _safe_in_views(node: fx.Node, order: dict[fx.Node, int], requires: set[fx.Node]) -> bool:
    """Whether the node writes to one tensor, perhaps through views that can be taken again."""
    if not can_write(node, order):
        return False
    return not (node in NO_GRAD and root_of(node) in requires)


def _view_read_after(tensor: fx.Node, write: fx.Node, order: dict[fx.Node, int]) -> bool:
    return any(
        is_view(user)
        and user is not write
        and (
            any(order.get(reader, -1) > order[write] for reader in user.users)
            or _view_read_after(user, write, order)
        )
        for user in tensor.users
    )


def _updates_statistics(norm: fx.Node) -> bool:
    return norm.args[5] is True and isinstance(norm.args[3], fx.Node)


def _functional_norm(graph: fx.Graph, norm: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Turn a training batch norm into the op that returns its statistics; return old and new."""
    value = norm.meta["val"]
    mean, variance = norm.args[3:5]
    assert isinstance(mean, fx.Node)
    assert isinstance(variance, fx.Node)
    with graph.inserting_before(norm):
        whole = graph.call_function(
            _ATEN._native_batch_norm_legit_functional.default, norm.args[:8]
        )
        parts = [graph.call_function(operator.getitem, (whole, index)) for index in (0, 3, 4)]
    statistics = mean.meta["val"]
    whole.meta = {**norm.meta, "val": (value, *[statistics] * 4)}
    for part, tensor in zip(parts, (value, statistics, statistics), strict=True):
        part.meta = {**norm.meta, "val": tensor}
    norm.replace_all_uses_with(parts[0])
    return [(mean, parts[1]), (variance, parts[2])]


def _replace_later(old: fx.Node, new: fx.Node, since: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let the readers of `old` after a point of the graph read `new` instead."""
    later = {user for user in old.users if order.get(user, -1) > order[since]}
    old.replace_all_uses_with(new, delete_user_cb=later.__contains__)


def _name_of(target: fx.Node, newest: dict[str, fx.Node], state: dict[str, str]) -> str:
    for name, node in newest.items():
        if node is target:
            return name
    return state[target.name]


def _by_torch(program: torch.export.ExportedProgram) -> Functional:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch to itself (2.13)
        functional = program.run_decompositions({})
    (returned,) = functional.graph.output_node().args
    assert isinstance(returned, list | tuple)
    written, values, results = [], [], []
    for value, spec in zip(returned, functional.graph_signature.output_specs, strict=True):
        if spec.kind in _STATE_WRITES:
            assert spec.target is not None
            written.append(spec.target)
            values.append(value)
        elif spec.kind is OutputKind.USER_OUTPUT:
            results.append(value)
    functional.graph.output_node().args = ((*values, *results),)
    return Functional(
        functional, module_of(functional.graph, functional.graph_module), tuple(written)
    )
