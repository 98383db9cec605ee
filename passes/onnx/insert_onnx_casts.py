"""Insert the casts a plan lists into an ONNX graph: one per tensor and precision, shared by all.

A weight is cast in the file and not in the graph: its 16-bit readers find it in 16 bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mpcompile.onnx_graph.constants import mask_constants, narrowed, onnx_dtype, shape_of
from mpcompile.onnx_graph.nest import Nest, Use
from mpcompile.onnx_graph.values import constant_of, set_constant
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.plan import Cast, Plan
from mpcompile.precision import Precision

REASON, RULE = "mpcompile.reason", "mpcompile.rule"
"""Metadata keys of the decision about a node; viewers such as Netron show them."""

_CAST_NODE_BYTES = 64
"""Bytes of a Cast node in a file, without its names."""


@dataclass(frozen=True)
class InsertOnnxCasts:
    """Apply a plan to an ONNX graph.

    Attributes:
        plan: must be made from this graph.
        flow: the neutral graph that the plan was made from.
        nest: the ids of the graph's nodes and values.

    Example:
        >>> text = "(float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul (x, w) }"
        >>> plan, made = onnx_planned(text)
        >>> before_and_after(InsertOnnxCasts(plan, made.flow, made.nest), made.model)
        - y  f32[2,8]  MatMul x w
        + [x_f16_cast]  x_f16  f16[2,8]  Cast x
        + [w_f16_cast]  w_f16  f16[8,8]  Cast w
        + y_f16  f16[2,8]  MatMul x_f16 w_f16
        + [y_f32_cast]  y  f32[2,8]  Cast y_f16
    """

    plan: Plan
    flow: Dataflow
    nest: Nest

    def __call__(self, model: ir.Model) -> int:
        """Insert the casts and write the new dtypes; return how many nodes and tensors changed.

        A cast is in the graph of the tensor that it converts, right before its first reader.
        Inputs, outputs and weights keep their names.
        """
        work = _Insertion(self.plan, self.flow, self.nest, model)
        return work.run()


class _Insertion:
    def __init__(self, plan: Plan, flow: Dataflow, nest: Nest, model: ir.Model) -> None:
        self.plan, self.flow, self.nest, self.whole = plan, flow, nest, model.graph
        self.values = {id: value for value, id in nest.values.items()}
        self.nodes = {id: node for node, id in nest.nodes.items()}
        self.borders = {b.id: b for borders in nest.borders.values() for b in borders}
        self.home = {value: inner.graph for inner in nest.inners for value in _held(inner.graph)}
        self.caller = {inner.graph: inner.caller for inner in nest.inners}
        self.order = {node: index for index, (node, _) in enumerate(nest.visited())}
        self.names = {value.name for value in nest.values} | {node.name for node in nest.nodes}
        self.masks = set(mask_constants(nest))
        self.copies: dict[str, ir.Value] = {}
        computed = {d.op for d in plan.decisions if d.computes is not Precision.FP32}
        self.narrow = [name for op in flow.ops if op.id in computed for name in op.writes]

    def run(self) -> int:
        """Return how many nodes and tensors changed."""
        uses = {cast.id: self._uses(cast) for cast in self.plan.casts}
        by_tensor: dict[str, list[Cast]] = defaultdict(list)
        for cast in self.plan.casts:
            by_tensor[cast.tensor].append(cast)
        changed = self._note_dtypes(by_tensor)
        for name, casts in by_tensor.items():
            value = self.values[name]
            if constant_of(value) is not None:
                changed += self._weight(value, casts, uses)
            else:
                for cast in casts:
                    changed += self._cast(cast, casts, uses)
        if changed:
            self._note_reasons()
        return changed

    def _note_reasons(self) -> None:
        for decision in self.plan.decisions:
            if decision.op in self.nodes:
                noted = self.nodes[decision.op].metadata_props
                noted[RULE], noted[REASON] = decision.rule, decision.reason

    def _note_dtypes(self, by_tensor: dict[str, list[Cast]]) -> int:
        """Give 16-bit results a 16-bit type; convert weights that all readers read in 16 bits."""
        changed = 0
        for name in self.narrow:
            value = self.values[name]
            tensor = constant_of(value)
            if tensor is None:
                value.type = ir.TensorType(onnx_dtype(self.plan.precision))
                if value.const_value is not None:  # the default of an input
                    value.const_value = narrowed(value.const_value, self.plan.precision)
                changed += 1
            elif name not in by_tensor:
                set_constant(value, self._narrowed(value, tensor))
                changed += 1
        return changed

    def _narrowed(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return narrowed(tensor, self.plan.precision, value in self.masks)

    def _uses(self, cast: Cast) -> list[Use]:
        """Return where a cast's readers read the tensor."""
        value, found = self.values[cast.tensor], []
        for reader in cast.readers:
            if reader == "output":
                found += [Use(self.whole, k) for k in range(len(self.whole.outputs))]
            elif reader in self.borders:
                found += self.borders[reader].reads
            else:
                node = self.nodes[reader]
                found += [Use(node, k) for k in range(len(node.inputs))]
        return [use for use in found if use.value is value]

    def _weight(self, value: ir.Value, casts: Sequence[Cast], uses: dict[str, list[Use]]) -> int:
        """Let some readers of a weight read FP32 and others 16 bits.

        The weight is stored twice, or once in FP32 with a cast: the choice that takes fewer bytes.
        """
        tensor = constant_of(value)
        assert tensor is not None
        if cast_up := [c for c in casts if c.to is Precision.FP32]:
            wide = {use for cast in cast_up for use in uses[cast.id]}
            narrow = [use for use in self._all_uses(value) if use not in wide]
        else:
            narrow = [use for cast in casts for use in uses[cast.id]]
        if not narrow:
            return 0
        name = self._name(f"{value.name}_{self.plan.precision.short}")
        home = self.home[value]
        if value in self.masks or 2 * tensor.size <= _CAST_NODE_BYTES + len(value.name or "") + len(
            name
        ):
            copy = ir.Value(
                name=name,
                type=ir.TensorType(onnx_dtype(self.plan.precision)),
                shape=shape_of(tensor),
                const_value=self._narrowed(value, tensor),
            )
            home.register_initializer(copy)
        else:
            copy = self._node(value, self.plan.precision, name, narrow, casts[0].reason)
        for use in narrow:
            use.replace(copy)
        return 1

    def _all_uses(self, value: ir.Value) -> list[Use]:
        found = [Use(node, index) for node, index in value.uses()]
        for inner in self.nest.inners[1:]:
            found += [Use(inner.graph, k) for k, v in enumerate(inner.graph.outputs) if v is value]
        return found

    def _cast(self, cast: Cast, casts: Sequence[Cast], uses: dict[str, list[Use]]) -> int:
        value = self.values[cast.tensor]
        source = self.copies.get(cast.source, value)
        there = _cast_away(source, onnx_dtype(cast.to))
        chained = [use for other in casts if other.source == cast.id for use in uses[other.id]]
        if there is not None:
            copy = there
        else:
            name = self._name(f"{value.name}_{cast.to.short}")
            copy = self._node(source, cast.to, name, [*uses[cast.id], *chained], cast.reason)
        self.copies[cast.id] = copy
        leaves = any(use.reader is self.whole for use in uses[cast.id])
        for use in uses[cast.id]:
            use.replace(copy)
        if leaves:  # a graph output keeps its name
            kept, value.name = value.name, self._name(f"{value.name}_{self.plan.precision.short}")
            copy.name = kept
        return 1

    def _node(
        self, source: ir.Value, to: Precision, name: str, uses: Iterable[Use], reason: str
    ) -> ir.Value:
        """Add a Cast node for these readers and return its output."""
        home = self.home[source]
        node = ir.node(
            "Cast", [source], {"to": int(onnx_dtype(to))}, name=self._name(f"{name}_cast")
        )
        node.metadata_props[REASON] = reason
        copy = node.outputs[0]
        copy.name, copy.type, copy.shape = name, ir.TensorType(onnx_dtype(to)), source.shape
        readers = [self._reader_in(home, use) for use in uses]
        inside = [reader for reader in readers if reader is not None]
        if inside:
            home.insert_before(min(inside, key=self.order.__getitem__), node)
        else:
            home.append(node)
        self.home[copy] = home
        self.order[node] = min((self.order[r] for r in inside), default=len(self.order))
        return copy

    def _reader_in(self, home: ir.Graph, use: Use) -> ir.Node | None:
        """Return the node of a graph that holds a use, itself or in one of its inner graphs."""
        reader = use.reader
        while True:
            graph = reader.graph if isinstance(reader, ir.Node) else reader
            if graph is home:
                return reader if isinstance(reader, ir.Node) else None
            caller = self.caller[graph]  # type: ignore[index]
            assert caller is not None
            reader = caller

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name


def _held(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _cast_away(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    """Return the value that a Cast node read, if that value has the wanted dtype."""
    node = value.producer()
    if node is None or node.op_type != "Cast" or node.domain not in ("", "ai.onnx"):
        return None
    (source,) = node.inputs
    return source if source is not None and source.dtype is dtype else None
