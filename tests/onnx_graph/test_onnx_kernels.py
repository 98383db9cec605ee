"""Which ops a target has a 16-bit kernel for: the table, against the installed runtime."""

from __future__ import annotations

import random

import onnx
import onnx_ir as ir

from bench.onnx import kernels as onnx_kernels
from bench.onnx import registry as onnx_registry
from bench.onnx.probe import single_ops
from bench.onnx.registry import Kernel
from mpcompile.onnx_graph.kernel_table import TABLE
from mpcompile.onnx_graph.kernels import OnCpu, Provider, Target, formats, lacking
from mpcompile.onnx_graph.nest import nest_of
from mpcompile.onnx_graph.signatures import signature
from mpcompile.precision import Precision

GRAPH = """<ir_version: 8, opset_import: ["" : {opset}]>
g (float[1, 4, 4] x, bool on) => (float[1, 4, 4] y) {{
  a = Relu(x)
  b = Acos(a)
  c = MatMul(b, a)
  y = If(on) <
    then_branch = t () => (float[1, 4, 4] p) {{ p = Exp(c) }},
    else_branch = e () => (float[1, 4, 4] q) {{ q = Identity(c) }}
  >
}}"""


def lacks(opset: int, precision: Precision, target: Target) -> set[str]:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.format(opset=opset)))
    nest = nest_of(model.graph)
    ops = {id: node.op_type for node, id in nest.nodes.items()}
    return {ops[id] for id in lacking(nest, opset, precision, target)}


def test_a_node_lacks_what_its_target_has_no_kernel_for() -> None:
    assert lacks(17, Precision.FP16, Target.CUDA) == {"Acos"}
    # A CPU runs it in FP32, between casts; with a GPU it is the CPU's in any format.
    assert lacks(17, Precision.FP16, Target.CPU) == set()
    assert lacks(17, Precision.FP16, Target.ANY) == set()
    assert lacks(17, Precision.BF16, Target.CPU) == {"Relu", "Acos", "MatMul", "Exp"}
    assert lacks(17, Precision.BF16, Target.CUDA) == {"Acos"}


def test_nothing_leaves_the_gpu_for_its_format() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,1,4,4] x, float[1,2,2,2] at) => (float[1,1,2,2] y) { y = GridSample(x, at) }"""
    nest = nest_of(ir.from_proto(onnx.parser.parse_model(text)).graph)
    for target in (Target.CUDA, Target.ANY):
        assert lacking(nest, 17, Precision.FP16, target)
    assert not lacking(nest, 17, Precision.FP16, Target.CPU)


def test_an_op_that_its_runtime_does_not_know_in_this_version_has_no_kernel() -> None:
    assert formats(Provider.CUDA, "MaxPool", 12) == "hf"
    assert formats(Provider.CUDA, "MaxPool", 21) == "hf"
    assert formats(Provider.CUDA, "MaxPool", 22) == ""  # registered for 12 alone, without an end
    assert formats(Provider.CPU, "NoSuchOp", 22) == ""


def test_kernels_become_a_line_of_the_table() -> None:
    half, brain, full = "tensor(float16)", "tensor(bfloat16)", "tensor(float)"
    kernels = [
        Kernel("P", "Relu", 6, 12, {"T": (full,)}),
        Kernel("P", "Relu", 13, 13, {"T": (full,)}),
        Kernel("P", "Relu", 13, 13, {"T": (half,)}),
        Kernel("P", "MaxPool", 12, (1 << 31) - 1, {"T": (full, half)}),
        Kernel("Q", "Relu", 1, 99, {"T": (half,)}),
        # Statistics stay FP32 when the rest is narrow: this kernel would refuse it.
        Kernel("P", "LayerNormalization", 17, 17, {"T": (brain,), "U": (brain,)}),
    ]
    cells = onnx_registry.cells_of(kernels, "P")
    # Op set 14 gave Relu integers: a new version, which no kernel here is for, and a definition.
    assert cells["Relu"] == {6: "f", 13: "hf", 14: "x"}
    assert cells["MaxPool"] == {12: "hf", 22: "-"}
    assert "LayerNormalization" not in cells
    assert onnx_registry.as_table({"P": {"Relu": cells["Relu"]}, "Q": {}}).split("|") == [
        "Relu                       ", " 6:f 13:hf 14:x        ", " -",
    ]  # fmt: skip


def test_every_line_names_an_op_and_its_formats() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    lines = TABLE.strip().splitlines()
    assert [line.split()[0] for line in lines] == sorted({line.split()[0] for line in lines})
    for line in lines:
        op, *columns = (part.strip() for part in line.split("|"))
        assert op in names
        assert len(columns) == len(Provider)
        for cell in " ".join(columns).replace(" - ", " ").split():
            assert cell == "-" or set(cell.partition(":")[2]) <= set("hbfx-")


def test_tensors_that_every_kernel_wants_alike_are_of_one_type() -> None:
    attention = signature("Attention", "", 23)
    assert attention is not None
    assert {attention.input(k) for k in range(6)} == {"T1"}
    assert signature("RMSNormalization", "", 23).inputs == ("V", "V")  # type: ignore[union-attr]


def test_the_installed_runtime_does_what_the_table_says() -> None:
    cases = random.Random(0).sample(single_ops(), 60)
    found = onnx_kernels.probed(cases)
    assert len(found) > 100
    assert {each.said for each in found} == set(OnCpu)
    assert [each for each in found if each.refutes] == []
    # Where it says that an op fails, one node of it may still get by.
    assert sum(not each.agrees for each in found) <= 3
