"""Facts about a node's op from torch's op registry: names, arguments, tags."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
import torch.distributed._functional_collectives  # the shapes of collective ops
from torch import fx
from torch._ops import HigherOrderOperator

from mpcompile.torch_private.versions import release

COLLECTIVES: Any = torch.ops._c10d_functional
"""Operations between processes as ops of a graph."""


def op_name(node: fx.Node) -> str:
    """Return a node's ATen name without namespace and overload (``add``), or its target's name."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def is_higher_order(node: fx.Node) -> bool:
    """Whether the node calls graphs, like ``torch.cond``."""
    return isinstance(node.target, HigherOrderOperator)


def is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with one of its inputs."""
    return _returns_alias(node.target)


@cache
def _returns_alias(target: object) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and not result.alias_info.is_write
        for result in schema.returns
    )


def arguments_of(node: fx.Node) -> dict[str, fx.Node]:
    """Return the nodes among an op's arguments by the names its schema gives them."""
    return {name: value for name, value in given(node).items() if isinstance(value, fx.Node)}


def given(node: fx.Node) -> dict[str, Any]:
    """Return an op's arguments by name; missing ones get their default values."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    named = {argument.name: argument.default_value for argument in schema}
    return named | dict(zip(named, node.args, strict=False)) | dict(node.kwargs)


def in_order(node: fx.Node) -> list[Any]:
    """Return an op's arguments in the order of its schema, missing ones with their defaults."""
    names, values = _schema_of(node.target)
    found = [*node.args, *values[len(node.args) :]]
    for name, value in node.kwargs.items():
        if name in names:
            found[names[name]] = value
    return found


@cache
def _schema_of(target: Any) -> tuple[dict[str, int], list[Any]]:
    """Return the position of each argument by name, and the default values."""
    schema = getattr(target, "_schema", None)
    arguments = schema.arguments if schema is not None else []
    names = {argument.name: index for index, argument in enumerate(arguments)}
    return names, [argument.default_value for argument in arguments]


def number_arguments(node: fx.Node, values: Collection[str] = ()) -> dict[str, float]:
    """Return the Python numbers that an op takes as operands, by the names its schema gives them.

    The schema declares such an argument as a number, or as a tensor that a number can replace.
    Sizes, dimensions and options have other types.

    Args:
        node: a call.
        values: names of arguments that are operands although they are declared like options.
    """
    if not hasattr(node.target, "_schema"):
        return {}
    kinds = {item.name: str(item.type) for item in node.target._schema.arguments}
    return {
        name: float(value)
        for name, value in given(node).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if kinds[name] in ("number", "Optional[number]", "Tensor") or name in values
    }


def mutated_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the graph nodes whose tensors the node writes to, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.op != "call_function" or not schema.is_mutable:
        return []
    written = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = (
                node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            )
            written += [item for item in _flat(value) if isinstance(item, fx.Node)]
    return written


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def functional_overload(node: fx.Node) -> Any | None:
    """Return the functional twin of an op that writes, or None.

    It is ``add.Tensor`` of ``add_.Tensor``, and ``div.Tensor`` of ``div.out``.
    """
    name, overload = op_name(node), getattr(node.target, "_overloadname", "")
    if "out" in node.kwargs:
        return _without_out(node.target)
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload, None) if packet is not None else None


@cache
def _without_out(target: Any) -> Any | None:
    """Return the overload of an op that returns the tensor which the given one writes."""
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments if a.name != "out"]
    packet = target.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        if [(a.name, str(a.type)) for a in overload._schema.arguments] == wanted:
            return overload
    return None


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the same element of the inputs only."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def draws(node: fx.Node) -> bool:
    """Whether the op draws random numbers; a dropout in evaluation or of probability 0 does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    options = given(node)
    trains = options.get("train", options.get("training"))
    return trains is not False and 0 not in map(options.get, ("p", "dropout", "dropout_p"))


def scan_is_differentiable() -> bool:
    """Whether torch's gradient of ``scan`` is right: in 2.11 it is not, in 2.13 it is."""
    return release(torch.__version__) >= (2, 13)
