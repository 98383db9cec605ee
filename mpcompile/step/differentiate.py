"""Forward graph to gradient graph: run it under autograd on fake tensors and record both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, CompileError, NotOneGraph
from mpcompile.program.capture import Forward, Input, InputKind, source_position
from mpcompile.program.control_flow import all_graphs, called_graphs, is_control_flow
from mpcompile.program.derivatives.own_backward import Seed
from mpcompile.program.marks import BACKWARD, BACKWARD_SEED, PLANNED, SLOT, SLOTS, WHERE
from mpcompile.program.open_capture import WatchedInterpreter, needs_size
from mpcompile.program.returned import PREFIX
from mpcompile.step.graph import call
from mpcompile.step.record import record
from mpcompile.step.slots import Role, Slot
from mpcompile.step.unreached import NotReached
from mpcompile.torch_private.graphs import fake_mode_of, rename
from mpcompile.torch_private.ops import draws, op_name, scan_is_differentiable
from mpcompile.torch_private.tracing import DataDependent


def differentiate(
    forward: Forward, trained: Sequence[str], origin: str | None
) -> tuple[fx.GraphModule, dict[str, Slot]]:
    """Return the gradient graph and its slots.

    Its results are the loss, one FP32 gradient per trained parameter (``grad.NAME``), the next
    value of each buffer that the forward pass writes (``next.NAME``) and the tensors that the loss
    function returns beside the loss (``aux.0``). Casts are differentiated like any other op, so
    backward inherits the precision of forward. Nodes of backward have the mark `BACKWARD`. The mark
    `PLANNED` of all nodes is the id of the op or cast of the plan that they come from.

    Args:
        forward: the forward graph, casts inserted.
        trained: names of the parameters to differentiate with respect to.
        origin: the user's source position for error messages.

    Raises:
        NotReached: the loss does not reach a trained parameter.
        BadInput: a gradient would be sparse.
        CannotCapture: torch differentiates this control flow wrongly or not at all.
    """
    module, inputs = forward.module, forward.inputs
    _refuse_sparse(module, origin)
    _refuse_inside(module, origin)
    roles = [_role(item, trained, forward.written) for item in inputs]

    def joint(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = [value.detach() for value in values]
        for role, value in zip(roles, state, strict=True):
            value.requires_grad_(role is Role.MASTER)
        by_name = {item.name: value for item, value in zip(inputs, state, strict=True)}
        with torch.enable_grad():
            start = Seed()
            run = WatchedInterpreter(forward, origin, start).run
            *others, loss = run(*state, enable_io_processing=False)
        # The next recorded op is the seed: it and all later nodes are backward.
        seed = start.value = torch.ones_like(loss)
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                loss, [by_name[name] for name in trained], seed, allow_unused=True
            )
            # A Function that runs a part of the model again adds to ``weight.grad`` itself.
            found = tuple(
                _sum(gradient, by_name[name].grad)
                for name, gradient in zip(trained, gradients, strict=True)
            )
        return (loss, *_all_reached(trained, found, origin), *others)

    for node in module.graph.nodes:
        PLANNED.setdefault(node, node.name)
    placeholders = module.graph.find_nodes(op="placeholder")
    fakes = [node.meta["val"] for node in placeholders]
    try:
        traced = record(joint, fakes, fake_mode_of(module.graph))
    except CompileError:
        raise
    except DataDependent as error:
        raise NotOneGraph(
            "the program cannot become one graph: Python control flow depends on the value of a "
            "tensor",
            origin,
            "use torch.where or torch.cond instead of if, and do not call .item() in the model",
        ) from error
    except Exception as error:
        calls = [node for node in module.graph.nodes if is_control_flow(node)]
        if not calls:
            if forward.batch_size is not None:
                raise needs_size("this program", origin) from error
            raise
        raise CannotCapture(
            f"torch cannot differentiate this {op_name(calls[0])} ({type(error).__name__})",
            _line(calls[0], origin),
            "use torch.where, or a loop with a fixed number of iterations",
        ) from error
    graph = traced.graph
    slots: dict[str, Slot] = {}
    for node, item, role in zip(
        list(graph.find_nodes(op="placeholder")), inputs, roles, strict=True
    ):
        rename(node, item.name)
        SLOT[node] = item.name
        slots[item.name] = _slot(item.name, role, node)
    made = [("loss", Role.LOSS), *((f"grad.{name}", Role.GRADIENT) for name in trained)]
    made += [(f"next.{name}", Role.UPDATED) for name in forward.written]
    beside = len(module.graph.output_node().args[0]) - 1 - len(forward.written)  # type: ignore[arg-type]
    made += [(f"{PREFIX}{index}", Role.AUXILIARY) for index in range(beside)]
    _plain_casts(graph)
    _draw_in_memory_order(graph)
    _name_results(graph, made, slots)
    _mark_backward(graph)
    graph.eliminate_dead_code()
    return traced, slots


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return one if other is None else other if one is None else one + other


def _role(item: Input, trained: Sequence[str], written: Sequence[str]) -> Role:
    if item.kind is InputKind.BATCH:
        return Role.BATCH
    if item.kind is InputKind.NUMBER:
        return Role.NUMBER
    if item.name in trained:
        return Role.MASTER
    # A parameter that only the program writes is state as a buffer is.
    return (
        Role.CONSTANT
        if item.kind is InputKind.PARAMETER and item.name not in written
        else Role.BUFFER
    )


def _slot(name: str, role: Role, node: fx.Node) -> Slot:
    value = node.meta["val"]
    return Slot(name, role, tuple(value.shape), value.dtype)


_SPARSE_ARGUMENT = {"embedding": 4, "embedding_bag": 5}


def _refuse_sparse(module: fx.GraphModule, origin: str | None) -> None:
    for node in module.graph.nodes:
        index = _SPARSE_ARGUMENT.get(op_name(node), len(node.args))
        if node.args[index : index + 1] == (True,):
            raise BadInput(
                f"the embedding {source_position(node).module or node.name} makes sparse gradients",
                _line(node, origin),
                "create the embedding with sparse=False",
            )


def _refuse_inside(module: fx.GraphModule, origin: str | None) -> None:
    """Refuse ops that torch would differentiate wrongly inside control flow."""
    for graph in all_graphs(module):
        for node in graph.graph.nodes:
            kind = op_name(node)
            if is_control_flow(node) and kind == "scan" and not scan_is_differentiable():
                raise CannotCapture(
                    f"torch {torch.__version__} computes wrong gradients of scan",
                    _line(node, origin),
                    "update torch to 2.13, or write the loop in Python",
                )
            for inner in called_graphs(node, graph):
                for op in inner.graph.nodes:
                    if draws(op):
                        raise CannotCapture(
                            f"the {op_name(op)} inside a {kind} would draw other numbers in "
                            "backward",
                            _line(node, origin),
                            "draw the random numbers outside and pass them in",
                        )


def _line(node: fx.Node, origin: str | None) -> str | None:
    where = source_position(node)
    return where.at or origin


def _all_reached(
    trained: Sequence[str], gradients: Sequence[torch.Tensor | None], origin: str | None
) -> list[torch.Tensor]:
    unreached = [name for name, grad in zip(trained, gradients, strict=True) if grad is None]
    if unreached:
        raise NotReached(unreached, origin)
    return [grad for grad in gradients if grad is not None]


def _plain_casts(graph: fx.Graph) -> None:
    """Turn a conversion that changes only the dtype into the form that the passes know."""
    for node in graph.nodes:
        if op_name(node) == "_to_copy" and "dtype" in node.kwargs:
            before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
            if before.device == after.device and before.layout == after.layout:
                keep = ("dtype", "memory_format")
                node.kwargs = {key: node.kwargs[key] for key in keep if node.kwargs.get(key)}


def _draw_in_memory_order(graph: fx.Graph) -> None:
    """Draw the dropout mask of a permuted tensor in the order of its memory.

    ``bernoulli_`` fills a tensor in memory order, its functional twin in index order. For the same
    seed the mask must be that of eager PyTorch.
    """
    for node in graph.nodes:
        if op_name(node) != "bernoulli" or not isinstance(node.args[0], fx.Node):
            continue
        like = node.args[0].meta["val"]
        order = sorted(range(like.dim()), key=lambda dim: -like.stride(dim))
        if order == list(range(like.dim())):
            continue
        with graph.inserting_before(node):
            laid = call(graph, torch.ops.aten.permute.default, node.args[0], order)
        node.replace_input_with(node.args[0], laid)
        node.meta["val"] = laid.meta["val"]
        with graph.inserting_before(node.next):
            back = [order.index(dim) for dim in range(like.dim())]
            seen = call(graph, torch.ops.aten.permute.default, node, back)
        node.replace_all_uses_with(seen, delete_user_cb=lambda user, seen=seen: user is not seen)


def _name_results(
    graph: fx.Graph, made: Sequence[tuple[str, Role]], slots: dict[str, Slot]
) -> None:
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, list | tuple)
    for (name, role), node in zip(made, values, strict=True):
        assert isinstance(node, fx.Node)
        slots[name] = _slot(name, role, node)
    SLOTS[output] = tuple(name for name, _ in made)


def _mark_backward(graph: fx.Graph) -> None:
    """Mark the nodes from the seed on: some of them run between autograd's own nodes."""
    loss = graph.output_node().args[0][0]  # type: ignore[index]
    seed = next(
        node for node in graph.nodes if op_name(node) == "ones_like" and node.args[0] is loss
    )
    BACKWARD_SEED[seed] = True
    backward = False
    for node in graph.nodes:
        backward = backward or node is seed
        if backward and node.op == "call_function":
            BACKWARD[node] = True
    for node in graph.nodes:
        if node.op == "call_function":
            WHERE[node] = source_position(node)
