"""Malformed ONNX files that are well-formed messages, but no models."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from bench.robustness.malformed_parts import (
    HOSTILE_NUMBERS,
    any_model,
    disturb,
    field,
    graphs_of,
    kind,
    messages_of,
    nodes_of,
    save,
)
from bench.robustness.malformed_seeds import seeds


@kind
def _any_field(random: Random, folder: Path) -> None:
    """Set one to three fields anywhere to unexpected values."""
    model = any_model(random)
    for _ in range(random.choice((1, 1, 2, 3))):
        disturb(random, random.choice(list(messages_of(model))))
    save(model, folder)


@kind
def _parts_exchanged(random: Random, folder: Path) -> None:
    """Replace a message of one model by a message of the same kind of another."""
    model, other = any_model(random), any_model(random)
    own = random.choice(list(messages_of(model)))
    same = [m for m in messages_of(other) if m.DESCRIPTOR is own.DESCRIPTOR]
    if same:
        own.CopyFrom(random.choice(same))
    save(model, folder)


@kind
def _parts_dropped(random: Random, folder: Path) -> None:
    model = any_model(random)
    for _ in range(random.choice((1, 2))):
        part = random.choice(list(messages_of(model)))
        fields = [field for field, _ in part.ListFields()]
        if fields:
            part.ClearField(random.choice(fields).name)
    save(model, folder)


@kind
def _dimensions(random: Random, folder: Path) -> None:
    """Write wrong, huge, negative or too many dimensions, of weights or of values."""
    model = any_model(random)
    bad = random.choice(([-1], [0], [3], [1 << 40], [1 << 62, 4], [1 << 62, 0], [1] * 100, []))
    tensors = [message for message in messages_of(model) if isinstance(message, TensorProto)]
    shapes = [m for m in messages_of(model) if isinstance(m, onnx.TensorShapeProto) and len(m.dim)]
    if tensors and random.random() < 0.6:
        tensor = random.choice(tensors)
        tensor.dims[:] = bad if random.random() < 0.6 else [*tensor.dims, *bad]
    else:
        random.choice(random.choice(shapes).dim).dim_value = random.choice(HOSTILE_NUMBERS)
    save(model, folder)


@kind
def _tensor_data(random: Random, folder: Path) -> None:
    model = any_model(random)
    tensors = [message for message in messages_of(model) if isinstance(message, TensorProto)]
    tensor = random.choice(tensors) if tensors else model.graph.initializer.add(name="spare")
    way = random.randrange(6)
    if way == 0:
        tensor.data_type = random.choice((0, -1, 29, 999, 1 << 30))
    elif way == 1:
        tensor.data_type = random.randrange(1, 29)
    elif way == 2:
        tensor.raw_data += b"more"
    elif way == 3:
        tensor.raw_data = tensor.raw_data[:-1]
    elif way == 4:
        tensor.float_data.extend([1.0, float("nan")])
    else:
        tensor.segment.begin = 0
        tensor.segment.end = 1
    save(model, folder)


@kind
def _names(random: Random, folder: Path) -> None:
    """Make cycles, names that are defined twice, or names without a definition."""
    model = any_model(random)
    nodes = list(nodes_of(model.graph))
    names = [name for node in nodes for name in (*node.input, *node.output)]
    for _ in range(random.choice((1, 1, 2))):
        node = random.choice(nodes)
        values = random.choice((node.input, node.output))
        if len(values):
            values[random.randrange(len(values))] = random.choice((*names, "nothing", ""))
    if random.random() < 0.3:
        graph = random.choice(list(graphs_of(model.graph)))
        graph.node.insert(0, graph.node[-1]) if random.random() < 0.5 else graph.node.reverse()
    save(model, folder)


@kind
def _ops_and_attributes(random: Random, folder: Path) -> None:
    model = any_model(random)
    node = random.choice(list(nodes_of(model.graph)))
    way = random.randrange(7)
    if way == 0:
        ops = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
        node.op_type = random.choice((*ops, "", "Nothing"))
    elif way == 1:
        node.domain = random.choice(("nowhere", "com.microsoft", "ai.onnx.ml", "\0"))
    elif way == 2:
        attribute = node.attribute.add(name=random.choice(("axis", "body", "to", "x", "")))
        attribute.type = random.randrange(15)
        attribute.i = random.choice(HOSTILE_NUMBERS)
    elif way == 3 and len(node.attribute):
        node.attribute.append(node.attribute[0])
    elif way == 4 and len(node.attribute):
        random.choice(node.attribute).type = random.randrange(15)
    elif way == 5:
        del node.input[random.randrange(len(node.input) + 1) :]
    else:
        node.input.extend(["x"] * random.choice((1, 5, 3000)))
    save(model, folder)


@kind
def _versions(random: Random, folder: Path) -> None:
    model = any_model(random)
    way = random.randrange(4)
    if way == 0:
        model.ir_version = random.choice((0, -1, 2, 3, 99, 1 << 40))
    elif way == 1:
        del model.opset_import[:]
    elif way == 2:
        model.opset_import[0].version = random.choice((0, -1, 1, 6, 9, 12, 99, 1 << 40))
    else:
        model.opset_import.add(domain="", version=random.choice((1, 7, 99)))
    save(model, folder)


@kind
def _deep_nesting(random: Random, folder: Path) -> None:
    """Write branches in branches, or sequences of sequences."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool k) => (float[2] y)'
        "{ y = Relu(x) }"
    )
    depth = random.choice((3, 15, 20, 31, 33, 120, 1000))
    if random.random() < 0.3:
        given = model.graph.value_info.add(name="s").type
        for _ in range(depth):
            given = given.sequence_type.elem_type
        given.tensor_type.elem_type = 1
        save(model, folder)
        return
    branch = onnx.GraphProto(node=model.graph.node, output=model.graph.output, name="branch")
    flat = inner = branch.SerializeToString()
    for _ in range(depth):
        node = onnx.helper.make_node("If", ["k"], ["y"]).SerializeToString()
        for name, graph in (("then_branch", inner), ("else_branch", flat)):
            held = AttributeProto(name=name, type=AttributeProto.GRAPH).SerializeToString()
            node += field(5, held + field(6, graph))
        inner = onnx.GraphProto(output=model.graph.output, name="b").SerializeToString()
        inner += field(1, node)
    del model.graph.node[:]
    data = model.SerializeToString() + field(7, field(1, node))
    (folder / "model.onnx").write_bytes(data)


@kind
def _functions(random: Random, folder: Path) -> None:
    """Write functions that call themselves or each other, or unfold to millions of nodes."""
    count = random.choice((1, 2, 5, 30, 300))
    calls = random.choice((1, 2, 8))
    loops = random.random() < 0.5
    text = '<ir_version: 8, opset_import: ["": 17, "f": 1]> g (float[2] x) => (float[2] y)'
    text += "{ y = f.F0(x) }\n"
    for k in range(count):
        last = k == count - 1
        callee = "Relu" if last and not loops else f"f.F{0 if last else k + 1}"
        body = " ".join(f"t{j + 1} = {callee}(t{j})" for j in range(calls))
        text += (
            f'<domain: "f", opset_import: ["": 17, "f": 1]> F{k} (t0) => (t{calls}) {{ {body} }}\n'
        )
    save(onnx.parser.parse_model(text), folder)


@kind
def _bodies(random: Random, folder: Path) -> None:
    """Write branches and loop bodies whose inputs and outputs do not match their node."""
    model = ModelProto()
    model.CopyFrom(seeds()[random.choice(("flow", "scan"))])
    graph = random.choice([graph for graph in graphs_of(model.graph) if graph is not model.graph])
    values = random.choice((graph.input, graph.output))
    if len(values) and random.random() < 0.5:
        del values[random.randrange(len(values))]
    else:
        spare = values.add(name=random.choice(("x", "spare")))
        spare.type.tensor_type.elem_type = random.choice((1, 7, 9))
    save(model, folder)


@kind
def _unusual_parts(random: Random, folder: Path) -> None:
    """Use parts of the format that models do not use."""
    model = any_model(random)
    way = random.randrange(5)
    if way == 0:
        sparse = model.graph.sparse_initializer.add()
        sparse.dims.extend([1 << 40])
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1 << 50]), "at"))
    elif way == 1:
        model.training_info.add().algorithm.CopyFrom(model.graph)
    elif way == 2:
        held = model.graph.input.add(name="map").type.map_type
        held.key_type = random.choice((1, 7, 99))
        held.value_type.tensor_type.elem_type = 1
    elif way == 3:
        node = random.choice(list(nodes_of(model.graph)))
        node.attribute.add(name="ref", type=AttributeProto.INT, ref_attr_name="nowhere")
    else:
        note = model.graph.quantization_annotation.add(tensor_name="x")
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nowhere")
    save(model, folder)


@kind
def _costly_to_run(random: Random, folder: Path) -> None:
    """Write valid models that need more memory or time than any machine has."""
    text = random.choice(
        (
            "g (float[1099511627776] x) => (float[1099511627776] y) { y = Relu(x) }",
            "g (float[65536,65536] x) => (float[65536,65536] y) { y = MatMul(x, x) }",
            "g (float[n,n,n,n,n,n] x) => (float[n,n,n,n,n,n] y) { y = Exp(x) }",
            "g (float[1] x) => (float[n] y) <int64[1] s = {1099511627776}>"
            "{ z = ConstantOfShape(s) y = Add(x, z) }",
            "g (float[1] x) => (float[m] y) <int64 a = {0}, int64 b = {4611686018427387904}, "
            "int64 d = {1}> { r = Range(a, b, d) z = Cast<to = 1>(r) y = Add(x, z) }",
            "g (float[1] x) => (float[1] y) <int64 n = {4611686018427387904}, bool yes = {1}>"
            "{ y = Loop(n, yes, x) <body = b (int64 i, bool go, float[1] s) => "
            "(bool on, float[1] t) { on = Identity(go) t = Sin(s) }> }",
            "g (float[1] x) => (float[m] y) <int64[1] p = {0}, int64[1] q = {1099511627776}>"
            "{ pads = Concat<axis = 0>(p, q) z = Pad(x, pads) y = Relu(z) }",
            "g (float[64,64] x) => (float[m,k] y) <int64[2] r = {1048576, 1048576}>"
            "{ z = Tile(x, r) y = MatMul(z, x) }",
        )
    )
    save(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>' + text), folder)
