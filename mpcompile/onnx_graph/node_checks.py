"""Check a node of an ONNX file against its op's schema, and attributes against their types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto
from onnx.defs import OpSchema

from mpcompile.errors import BadInput
from mpcompile.onnx_graph.tensor_checks import AGAIN, check_type
from mpcompile.validation import short

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_SPARSE = (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
_ONE = ("f", "i", "s", "t", "g", "tp", "sparse_tensor")
_MANY = ("floats", "ints", "strings", "tensors", "graphs", "type_protos", "sparse_tensors")
_WITH_BODIES = ("If", "Loop", "Scan")
_ROUND_TYPES = (TensorProto.INT64, TensorProto.BOOL)
_SCAN_WITHOUT_LENGTHS = 9
_NEEDED = (AttributeProto.TENSOR, AttributeProto.GRAPH, AttributeProto.TYPE_PROTO)

_Functions = Mapping[tuple[str, str, str], FunctionProto]


def label(node: NodeProto, index: int) -> str:
    """Return the name of a node in messages."""
    name = short(node.name) if node.name else f"number {index}"
    return f"node {name} ({short(node.op_type)[1:-1]})"


def is_local(node: NodeProto, functions: _Functions) -> bool:
    """Return whether a node calls a function of the model."""
    return (node.domain, node.op_type, node.overload) in functions


def check_node(
    node: NodeProto,
    name: str,
    opsets: Mapping[str, int],
    functions: _Functions,
    declared: frozenset[str] | None,
    where: str | None,
) -> None:
    """Raise BadInput if a node does not fit the schema of its op.

    The caller checks graphs and tensors inside it. For an op without a schema, such as one of
    another domain, only the fields that every node has are checked.

    Args:
        node: the node.
        name: its name in messages.
        opsets: the versions of op sets for this node.
        functions: the model's own functions.
        declared: the attributes of the function around it; None outside a function.
        where: the file.
    """
    if not node.op_type:
        raise BadInput(f"{name} has no op type", where, AGAIN)
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in opsets:
        what = f"{name} is of the domain {short(domain)}, but the model imports no opset of it"
        raise BadInput(what, where, "add the import of that opset")
    if len(node.device_configurations):
        raise BadInput(f"{name} is split over devices", where, "export the model for one device")
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names) or "" in names:
        raise BadInput(f"{name} has an attribute twice, or one without a name", where, AGAIN)
    for attribute in node.attribute:
        check_attribute(attribute, name, where, declared)
    if is_local(node, functions):
        function = functions[node.domain, node.op_type, node.overload]
        if len(node.input) > len(function.input) or len(node.output) > len(function.output):
            raise BadInput(f"{name} has more inputs or outputs than its function", where, AGAIN)
        if any(attribute.type in _GRAPHS for attribute in node.attribute):
            raise BadInput(f"{name} passes a graph to a function", where, "inline the function")
        return
    schema = _schema(node.op_type, opsets[domain], domain)
    if schema is None and not domain and node.op_type in _WITH_BODIES:
        what = f"{name} does not exist in ONNX's opset {opsets[domain]}"
        raise BadInput(what, where, "export the model for a newer opset")
    if schema is not None:
        _check_schema(node, schema, name, where)
        _check_bodies(node, opsets[domain], name, where)


def check_attribute(
    attribute: AttributeProto, owner: str, where: str | None, declared: frozenset[str] | None
) -> None:
    """Raise BadInput if an attribute is not of its stated type; its contents are not checked."""
    name = f"the attribute {short(attribute.name)} of {owner}"
    used = [field for field in _ONE if attribute.HasField(field)]
    used += [field for field in _MANY if len(getattr(attribute, field))]
    if attribute.ref_attr_name:
        known = declared is not None and attribute.ref_attr_name in declared
        if not known or used or attribute.type in _GRAPHS:
            what = f"{name} refers to {short(attribute.ref_attr_name)}, which does not exist"
            raise BadInput(what, where, AGAIN)
        return
    if attribute.type in _SPARSE:
        raise BadInput(f"{name} is a sparse tensor", where, "export a dense tensor")
    field = _FIELDS.get(attribute.type)
    if field is None or set(used) - {field}:
        raise BadInput(f"{name} is not of its declared type", where, AGAIN)
    if attribute.type in _NEEDED and not used:
        raise BadInput(f"{name} has no value", where, AGAIN)
    for given in [attribute.tp] if field == "tp" else attribute.type_protos:
        check_type(given, name, where)


@cache
def _schema(op_type: str, opset: int, domain: str) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _check_schema(node: NodeProto, schema: OpSchema, name: str, where: str | None) -> None:
    inputs, outputs = len(node.input), len(node.output)
    if not schema.min_input <= inputs <= schema.max_input:
        raise BadInput(
            f"{name} has {inputs:,} inputs, but its op does not take this number", where, AGAIN
        )
    if not schema.min_output <= outputs <= schema.max_output:
        raise BadInput(
            f"{name} has {outputs:,} outputs, but its op does not have this number", where, AGAIN
        )
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise BadInput(
                f"{name} has the attribute {short(attribute.name)}, which its op does not have",
                where,
                AGAIN,
            )
        if known.type.value != attribute.type:  # type: ignore[attr-defined]
            what = f"the attribute {short(attribute.name)} of {name} is of the wrong type"
            raise BadInput(what, where, AGAIN)
    given = {attribute.name for attribute in node.attribute}
    for attribute_name, known in schema.attributes.items():
        if known.required and attribute_name not in given:
            raise BadInput(f"{name} lacks the attribute {attribute_name}", where, AGAIN)


def _check_bodies(node: NodeProto, opset: int, name: str, where: str | None) -> None:
    """Raise BadInput if a node's inputs or outputs do not match those of a graph inside it."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    wrong = BadInput(
        f"{name} and a graph inside it do not match in their inputs or outputs", where, AGAIN
    )
    if node.op_type == "If":
        for branch in ("then_branch", "else_branch"):
            inner = attributes[branch].g
            if len(inner.input) or len(inner.output) != len(node.output):
                raise wrong
    elif node.op_type == "Loop":
        body, states = attributes["body"].g, len(node.input) - 2
        if len(body.input) != 2 + states or len(body.output) != 1 + len(node.output):
            raise wrong
        given = [value.type.tensor_type.elem_type for value in body.input[:2]]
        if len(node.output) < states or any(
            dtype not in (TensorProto.UNDEFINED, wanted)
            for dtype, wanted in zip(given, _ROUND_TYPES, strict=True)
        ):
            raise wrong
    elif node.op_type == "Scan":
        body, slices = attributes["body"].g, attributes["num_scan_inputs"].i
        states = len(body.input) - slices
        if slices < 1 or states < 0 or len(node.output) < states:
            raise wrong
        lengths = 1 if opset < _SCAN_WITHOUT_LENGTHS else 0
        if len(body.output) != len(node.output) or len(node.input) != lengths + len(body.input):
            raise wrong
