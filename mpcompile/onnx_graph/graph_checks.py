"""Check the structure of an ONNX model before other code reads it: names, order, functions.

Graphs and lists here may be hostile: recursion and counts are bounded, and so is the size of a
model when each call of a local function is replaced by its body.
Source: the ONNX IR specification, onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from mpcompile.errors import BadInput
from mpcompile.onnx_graph.external_data import DataFolder
from mpcompile.onnx_graph.node_checks import check_attribute, check_node, is_local, label
from mpcompile.onnx_graph.tensor_checks import AGAIN, check_tensor, check_type
from mpcompile.validation import short

MOST_NODES = 100_000
"""Limit for all graphs together, with every call of a local function replaced by its body."""
MOST_CALLS = 2_000
"""Limit of replaced calls of local functions: the library that replaces them takes time that grows
with the square."""
DEEPEST_GRAPH = 16
"""Limit of graphs inside graphs, also through functions."""

_SMALLER = "give a smaller model"
_OPSETS_SINCE = 3
_PLAIN = (
    AttributeProto.INT,
    AttributeProto.FLOAT,
    AttributeProto.STRING,
    AttributeProto.INTS,
    AttributeProto.FLOATS,
    AttributeProto.STRINGS,
)
_Key = tuple[str, str, str]


@dataclass
class _Size:
    """The contents of a body with its calls replaced by bodies."""

    nodes: int = 0
    depth: int = 0
    calls: list[tuple[_Key, int]] = field(default_factory=list)


def check_model(model: onnx.ModelProto, data: DataFolder, where: str | None) -> None:
    """Raise BadInput if a model is not a well-formed nest of graphs and functions.

    Args:
        model: the model.
        data: the folder of its data files.
        where: its file, for messages.
    """
    if not model.ir_version and not model.HasField("graph"):
        raise BadInput("this is not an ONNX file", where, "give the path of an ONNX file")
    if not 0 < model.ir_version <= onnx.IR_VERSION:
        what = f"IR version {model.ir_version} is not one that ONNX {onnx.__version__} reads"
        raise BadInput(what, where, "export the model again, or install a newer ONNX")
    if not model.HasField("graph"):
        raise BadInput("the model has no graph", where, AGAIN)
    if len(model.training_info):
        what = "the model has training_info, which no runtime reads"
        raise BadInput(what, where, "remove the training_info")
    if len(model.configuration):
        raise BadInput("the model is split over devices", where, "export the model for one device")
    opsets = _opsets(model.opset_import, "the model", where)
    if not opsets and model.ir_version < _OPSETS_SINCE:
        opsets = {"": 1}
    functions: dict[_Key, FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in functions or not function.name:
            raise BadInput(f"the function {short(function.name)} is defined twice", where, AGAIN)
        functions[key] = function
    everywhere = dict(opsets)
    sizes = {
        key: _check_function(f, functions, everywhere, data, where) for key, f in functions.items()
    }
    whole = _Checked(where, data, opsets, functions, None)
    whole.graph(model.graph, (), 0)
    _check_growth(whole.size, sizes, where)


def _opsets(
    imports: Iterable[onnx.OperatorSetIdProto], name: str, where: str | None
) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in imports:
        domain = "" if item.domain == "ai.onnx" else item.domain
        if found.get(domain, item.version) != item.version:
            raise BadInput(
                f"{name} imports two versions of the domain {short(domain)}", where, AGAIN
            )
        found[domain] = item.version
        newest = onnx.defs.onnx_opset_version() if not domain else 1 << 31
        if not 0 < item.version <= newest:
            what = f"{name} imports opset {item.version} of {short(domain)}, which is unknown"
            raise BadInput(what, where, "export the model for an older opset")
    return found


def _check_function(
    function: FunctionProto,
    functions: Mapping[_Key, FunctionProto],
    outer: dict[str, int],
    data: DataFolder,
    where: str | None,
) -> _Size:
    name = f"the function {short(function.name)}"
    opsets = _opsets(function.opset_import, name, where)
    for domain, version in opsets.items():
        if outer.setdefault(domain, version) != version:
            what = (
                f"{name} imports opset {version} of {short(domain)}, but the model imports "
                f"{outer[domain]}"
            )
            raise BadInput(what, where, "export the model again for one opset")
    defaults = [attribute.name for attribute in function.attribute_proto]
    known = [*function.attribute, *defaults]
    if len(set(known)) < len(known) or "" in known:
        raise BadInput(f"{name} declares an attribute twice, or one without a name", where, AGAIN)
    checked = _Checked(where, data, opsets, functions, frozenset(known))
    for attribute in function.attribute_proto:
        check_attribute(attribute, name, where, None)
        if attribute.type not in _PLAIN:
            raise BadInput(
                f"{name} has a default that is neither a number nor a text", where, AGAIN
            )
    if len(set(function.output)) < len(function.output):
        raise BadInput(f"{name} returns a value twice", where, AGAIN)
    scope: set[str] = set()
    checked.define(function.input, scope, name)
    checked.nodes(function.node, (scope,), 0)
    for output in function.output:
        if output not in scope:
            raise BadInput(f"{name} returns {short(output)}, which nothing makes", where, AGAIN)
    for info in function.value_info:
        check_type(info.type, f"value {short(info.name)}", where)
    return checked.size


@dataclass
class _Checked:
    """One body and the graphs inside it, visited once.

    Attributes:
        where: the model's file.
        data: the folder of its data files.
        opsets: the versions of op sets in this body.
        functions: the model's own functions.
        attributes: the attributes of the function; None outside a function.
        size: the contents found so far.
    """

    where: str | None
    data: DataFolder
    opsets: Mapping[str, int]
    functions: Mapping[_Key, FunctionProto]
    attributes: frozenset[str] | None
    size: _Size = field(default_factory=_Size)

    def graph(self, graph: GraphProto, scopes: tuple[set[str], ...], depth: int) -> None:
        """Check a graph; `scopes` are the names around it, outermost first."""
        if depth > DEEPEST_GRAPH:
            raise BadInput(
                f"graphs are nested more than {DEEPEST_GRAPH} deep", self.where, _SMALLER
            )
        self.size.depth = max(self.size.depth, depth)
        if len(graph.sparse_initializer):
            raise BadInput(
                "the model has sparse weights", self.where, "export the weights as dense tensors"
            )
        scope: set[str] = set()
        self.define([value.name for value in graph.input], scope, "the graph's inputs")
        if max(len(graph.input), len(graph.output)) > MOST_NODES:
            raise BadInput(
                f"a graph has more than {MOST_NODES:,} inputs or outputs", self.where, _SMALLER
            )
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.HasField("type"):
                check_type(value.type, f"value {short(value.name)}", self.where)
        for value in graph.input:
            if depth == 0 and value.type.WhichOneof("value") is None:
                raise BadInput(f"the input {short(value.name)} has no type", self.where, AGAIN)
        weights: set[str] = set()
        for tensor in graph.initializer:
            self.tensor(tensor, f"tensor {short(tensor.name)}")
            self.define([tensor.name], weights, "the weights")
        scope |= weights
        self.nodes(graph.node, (*scopes, scope), depth)
        for value in graph.output:
            if value.name not in scope:
                what = f"no node of its graph makes the output {short(value.name)}"
                raise BadInput(what, self.where, AGAIN)

    def nodes(self, nodes: Iterable[NodeProto], scopes: tuple[set[str], ...], depth: int) -> None:
        """Check nodes in order; add the names of their outputs to the last scope."""
        nodes = list(nodes)
        self.size.nodes += len(nodes)
        if self.size.nodes > MOST_NODES:
            raise BadInput(f"the model has more than {MOST_NODES:,} nodes", self.where, _SMALLER)
        later: set[str] | None = None
        for index, node in enumerate(nodes):
            name = label(node, index)
            for value in node.input:
                if value and not any(value in scope for scope in reversed(scopes)):
                    later = later or {output for each in nodes[index:] for output in each.output}
                    raise BadInput(self._missing(name, value, value in later), self.where, AGAIN)
            check_node(node, name, self.opsets, self.functions, self.attributes, self.where)
            if is_local(node, self.functions):
                self.size.calls.append(((node.domain, node.op_type, node.overload), depth))
            for attribute in node.attribute:
                owned = f"the attribute {short(attribute.name)} of {name}"
                for tensor in [attribute.t] if attribute.HasField("t") else attribute.tensors:
                    self.tensor(tensor, owned)
                if any(each.data_location for each in attribute.tensors):
                    raise BadInput(
                        f"{owned} has a list of tensors whose data is in another file",
                        self.where,
                        AGAIN,
                    )
                graphs = [attribute.g] if attribute.HasField("g") else [*attribute.graphs]
                for graph in graphs:
                    self.graph(graph, scopes, depth + 1)
            self.define([output for output in node.output if output], scopes[-1], name)

    def tensor(self, tensor: TensorProto, name: str) -> None:
        """Check a tensor and the location of its data."""
        check_tensor(tensor, name, self.where)
        if tensor.data_location == TensorProto.EXTERNAL:
            self.data.check(tensor, name)

    def define(self, names: Iterable[str], scope: set[str], by: str) -> None:
        """Add names to a scope; refuse a name that it has already."""
        for name in names:
            if not name:
                raise BadInput(f"{by}: a value has no name", self.where, AGAIN)
            if name in scope:
                raise BadInput(
                    f"{short(name)} is defined twice, the second time by {by}", self.where, AGAIN
                )
            scope.add(name)

    def _missing(self, node: str, value: str, later: bool) -> str:
        if later:
            return f"{node} reads {short(value)} before it is made: a cycle, or the wrong order"
        return f"{node} reads {short(value)}, which nothing makes"


def _check_growth(whole: _Size, sizes: Mapping[_Key, _Size], where: str | None) -> None:
    """Raise BadInput if functions call themselves, or have too many nodes with calls replaced."""
    done: dict[_Key, tuple[int, int, int]] = {}

    def unfolded(size: _Size) -> tuple[int, int, int]:
        nodes = size.nodes + sum(done[key][0] for key, _ in size.calls)
        calls = len(size.calls) + sum(done[key][1] for key, _ in size.calls)
        depth = max([size.depth, *(at + done[key][2] for key, at in size.calls)])
        if nodes > MOST_NODES or calls > MOST_CALLS or depth > DEEPEST_GRAPH:
            what = f"more than {MOST_NODES:,} nodes or {MOST_CALLS:,} calls, or nest too deeply"
            raise BadInput(f"the model's functions expand to {what}", where, _SMALLER)
        return nodes, calls, depth

    # Not recursive: functions may call each other more deeply than Python allows.
    for start in sizes:
        path = [(start, iter(sizes[start].calls))] if start not in done else []
        on_path = {start}
        while path:
            key, calls = path[-1]
            callee = next((c for c, _ in calls if c not in done), None)
            if callee is None:
                done[key] = unfolded(sizes[key])
                on_path.discard(key)
                path.pop()
            elif callee in on_path:
                raise BadInput(f"the function {short(callee[1])} calls itself", where, AGAIN)
            else:
                on_path.add(callee)
                path.append((callee, iter(sizes[callee].calls)))
    unfolded(whole)
