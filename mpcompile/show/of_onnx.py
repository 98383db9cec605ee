"""Any ONNX model as rows for a person."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from mpcompile.onnx_graph.describe import scope_of
from mpcompile.onnx_graph.gate import read_model
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.nest import Nest, nest_of
from mpcompile.onnx_graph.values import elements_of, is_standard
from mpcompile.passes.onnx.insert_onnx_casts import REASON, RULE
from mpcompile.plan.dataflow import Where
from mpcompile.program.stack_lines import users_line
from mpcompile.show.view import NodeRole, View, ViewNode, precision_of

_FORMATS = {
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.FLOAT: "f32",
}
_SHORT = {
    ir.DataType.DOUBLE: "f64", ir.DataType.INT64: "i64", ir.DataType.INT32: "i32",
    ir.DataType.INT16: "i16", ir.DataType.INT8: "i8", ir.DataType.UINT8: "u8",
    ir.DataType.BOOL: "b8",
} | _FORMATS  # fmt: skip
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_STACK = "pkg.torch.onnx.stack_trace"


def view_of_onnx(file: Path, source: str) -> View:
    """Return a view of an ONNX model, with the nodes inside branches and loops.

    Reasons are those that `mpcompile.rewrite` wrote into it. The stage is always ``forward``,
    because a file does not say which nodes are backward.

    Args:
        file: an untrusted file.
        source: its name, as the user gave it.

    Raises:
        BadInput: it is no well-formed model.
    """
    return view_of_model(read_model(file), source)


def view_of_model(model: ir.Model, source: str) -> View:
    """Return a view of a model in memory, see `view_of_onnx`; stores inferred types in it."""
    infer_types(model)
    nest = nest_of(model.graph)
    rows = _Rows(nest)
    nodes = rows.inputs() + [rows.node(node) for node, _ in nest.visited()] + rows.outputs()
    narrow = {name for node in nodes for name in (node.precision, *node.stores)}
    precision = "fp16" if "f16" in narrow else "bf16" if "bf16" in narrow else "fp32"
    return View(source, "onnx", precision, tuple(nodes))  # type: ignore[arg-type]


class _Rows:
    """Makes the rows of one model; holds the facts that several rows need."""

    def __init__(self, nest: Nest) -> None:
        self._nest = nest
        self._ids: dict[str, int] = {}
        self._order = {node: index for index, (node, _) in enumerate(nest.visited())}
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self._order:
            for value in node.inputs:
                if value is not None:
                    self._readers.setdefault(value, []).append(node)
        self._names = dict(nest.nodes)
        taken = set(nest.nodes.values())
        self._inputs = {
            value: name if name not in taken else f"{name} (value)"
            for value, name in nest.values.items()
            if value.producer() is None
        }
        self._alive = self._bytes_alive()

    def inputs(self) -> list[ViewNode]:
        """Return a row for each input and weight, those of inner graphs too."""
        weights = {v for inner in self._nest.inners for v in inner.graph.initializers.values()}
        rows = []
        for value, name in self._inputs.items():
            stored = _format(value)
            rows.append(
                ViewNode(
                    id=name,
                    op="weight" if value in weights else "input",
                    role="input",
                    stage="forward",
                    precision=precision_of(stored, set(), {stored}),
                    stores=(stored,) if stored else (),
                    type=_type(value),
                    bytes=_bytes(value),
                )
            )
        return rows

    def outputs(self) -> list[ViewNode]:
        """Return a row for each output of the model."""
        rows: list[ViewNode] = []
        taken = {*self._names.values(), *self._inputs.values()}
        for value in self._nest.inners[0].graph.outputs:
            stored = _format(value)
            name = f"return {value.name}"
            while name in taken:
                name += "~"
            taken.add(name)
            rows.append(
                ViewNode(
                    id=name,
                    op=str(value.name),
                    role="output",
                    stage="forward",
                    precision=precision_of(stored, set(), {stored}),
                    computes=stored,
                    stores=(stored,) if stored else (),
                    type=_type(value),
                    reads=self._reads([value]),
                )
            )
        return rows

    def node(self, node: ir.Node) -> ViewNode:
        """Return the row of a node."""
        role = _role(node)
        values = [value for value in node.inputs if value is not None]
        computes, read, written = self._formats(node, role, values)
        noted: Mapping[str, str] = node.metadata_props
        result = next((value for value in node.outputs if value.name), None)
        return ViewNode(
            id=self._names[node],
            op=node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}",
            role=role,
            stage="forward",
            precision=precision_of(computes, read, written),
            computes=computes,
            stores=tuple(sorted(written)),
            type=_type(result) if result is not None else "",
            bytes=0 if role == "view" else sum(map(_bytes, node.outputs)),
            reads=self._reads([*values, *self._returned(node)]),
            rule="cast" if role == "cast" else noted.get(RULE, ""),
            reason=noted.get(REASON, ""),
            alive=self._alive[node],
            where=_where(node),
        )

    def _returned(self, node: ir.Node) -> list[ir.Value]:
        """Return the results of the graphs inside a node, which become the node's results."""
        uses = (use for border in self._nest.borders.get(node, ()) for use in border.reads)
        return [use.value for use in uses if use.value is not None]

    def _reads(self, values: list[ir.Value]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for value in values:
            made = value.producer()
            if made in self._names:
                found[self._names[made]] = None
            elif value in self._inputs:
                found[self._inputs[value]] = None
        return tuple(found)

    def _formats(
        self, node: ir.Node, role: NodeRole, values: list[ir.Value]
    ) -> tuple[str, set[str], set[str]]:
        """Return a node's compute format, and the storage formats of operands and result.

        A cast next to it counts as part of it: runtimes fuse it, or convert in registers.
        """
        written = {_format(value) for value in node.outputs[:1]} - {""}
        plain = {_format(value) for value in values} - {""}
        if role == "cast":
            return "f32", plain, written
        order = ("f16", "bf16", "f32").index
        computes = max(plain or written, key=order, default="")
        read = {_format(_widened_from(value)) for value in values} - {""}
        readers = self._readers.get(node.outputs[0], []) if node.outputs else []
        if written == {"f32"} and readers and all(_role(item) == "cast" for item in readers):
            written = {_format(item.outputs[0]) for item in readers}
        return computes, read, written

    def _bytes_alive(self) -> dict[ir.Node, int]:
        """Return per node the bytes of all weights and of all tensors that are read later."""
        owner: dict[ir.Value, ir.Value] = {}
        ends: dict[ir.Value, int] = {}
        last = len(self._order)
        leaving = set(self._nest.inners[0].graph.outputs)
        for node, index in self._order.items():
            viewed = node.inputs[0] if _role(node) == "view" else None
            for value in node.outputs:
                base = owner[value] = owner.get(viewed, viewed) if viewed is not None else value
                readers = [self._order[item] for item in self._readers.get(value, ())]
                end = last if value in leaving else max(readers, default=index)
                ends[base] = max(end, ends.get(base, 0))
        freed: dict[int, int] = {}
        for value, end in ends.items():
            if value not in self._inputs:
                freed[end] = freed.get(end, 0) + _bytes(value)
        alive = sum(map(_bytes, self._inputs))
        found: dict[ir.Node, int] = {}
        for node, index in self._order.items():
            alive += 0 if _role(node) == "view" else sum(map(_bytes, node.outputs))
            found[node] = alive
            alive -= freed.get(index, 0)
        return found


def _widened_from(value: ir.Value) -> ir.Value:
    """Return the 16-bit value that a cast has widened to this one, or the value itself."""
    node = value.producer()
    if node is None or _role(node) != "cast" or node.inputs[0] is None or _format(value) != "f32":
        return value
    return node.inputs[0]


def _role(node: ir.Node) -> NodeRole:
    if not is_standard(node):
        return "op"
    if node.op_type == "Cast" and node.inputs and node.outputs:
        formats = {_format(node.outputs[0]), _format(node.inputs[0])}
        return "cast" if "" not in formats and len(formats) == 2 else "op"
    if node.op_type == "Constant":
        return "input"
    return "view" if node.op_type in _VIEWS else "op"


def _format(value: ir.Value | None) -> str:
    known = value is not None and isinstance(value.type, ir.TensorType)
    return _FORMATS.get(value.type.dtype, "") if known else ""  # type: ignore[union-attr]


def _type(value: ir.Value) -> str:
    if not isinstance(value.type, ir.TensorType):
        return str(value.type) if value.type is not None else "?"
    name = _SHORT.get(value.type.dtype, value.type.dtype.name.lower())
    sizes = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{name}[{sizes}]"


def _bytes(value: ir.Value | None) -> int:
    if value is None or not isinstance(value.type, ir.TensorType):
        return 0
    return int(elements_of(value) * value.type.dtype.itemsize)


def _where(node: ir.Node) -> Where:
    stack = node.metadata_props.get(_STACK, "")
    return Where(scope_of(node), *users_line(stack, _is_library))


def _is_library(path: str) -> bool:
    return "site-packages" in path or path.startswith("<")
