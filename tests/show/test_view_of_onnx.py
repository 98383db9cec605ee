"""ONNX models and plans as rows."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from expecttest import assert_expected_inline
from onnx import parser

from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.gate import read_model, write_model
from mpcompile.plan.plan import Plan
from mpcompile.show.of_onnx import view_of_onnx
from mpcompile.show.of_plan import view_of_plan
from mpcompile.show.view import View, ViewNode

BRANCH = """<ir_version: 10, opset_import: ["": 20]>
g (float[4,8] x, bool k) => (float[4,8] y) <float[8,8] w = {WEIGHTS}> {
   a = MatMul(x, w)
   b = Relu(a)
   y = If(k) <
      then_branch = t () => (float[4,8] p) { p = Exp(b) },
      else_branch = e () => (float[4,8] q) { c = MatMul(b, w) q = Identity(c) }
   >
}"""


def lines(nodes: tuple[ViewNode, ...]) -> str:
    return "\n".join(
        f"{node.id:22} {node.op:7} {node.role:6} {node.precision:5} {node.computes:4}"
        f" {node.stored:4} {node.type:9} {','.join(node.reads):14} {node.reason}".rstrip()
        for node in nodes
    )


@pytest.fixture
def branch(tmp_path: Path) -> Path:
    numbers = ", ".join(str(k % 5) for k in range(64))
    file = tmp_path / "branch.onnx"
    onnx.save(parser.parse_model(BRANCH.replace("WEIGHTS", numbers)), file)
    return file


def test_any_model_is_shown_with_the_nodes_of_its_branches(branch: Path) -> None:
    view = view_of_onnx(branch, "branch.onnx")
    assert view.precision == "fp32"
    assert_expected_inline(
        lines(view.nodes),
        """\
x                      input   input  f32        f32  f32[4,8]
k                      input   input  other           b8[]
w                      weight  input  f32        f32  f32[8,8]
MatMul_a               MatMul  op     f32   f32  f32  f32[4,8]  x,w
Relu_b                 Relu    op     f32   f32  f32  f32[4,8]  MatMul_a
If_y                   If      op     f32   f32  f32  f32[4,8]  k,If_y/then_branch/Exp_p,If_y/else_branch/Identity_q
If_y/then_branch/Exp_p Exp     op     f32   f32  f32  f32[4,8]  Relu_b
If_y/else_branch/MatMul_c MatMul  op     f32   f32  f32  f32[4,8]  Relu_b,w
If_y/else_branch/Identity_q Identity view   f32   f32  f32  f32[4,8]  If_y/else_branch/MatMul_c
return y               y       output f32   f32  f32  f32[4,8]  If_y""",
    )


def test_a_rewritten_model_has_reasons(branch: Path, tmp_path: Path) -> None:
    done = rewrite(read_model(branch))
    mixed = tmp_path / "mixed.onnx"
    write_model(done.model, mixed)
    view = view_of_onnx(mixed, "mixed.onnx")
    assert view.precision == "fp16"
    assert View.from_json(view.to_json()) == view
    assert_expected_inline(
        lines(view.nodes),
        """\
x                      input   input  f32        f32  f32[4,8]
k                      input   input  other           b8[]
w                      weight  input  f16        f16  f16[8,8]
x_f16_cast             Cast    cast   both  f32  f16  f16[4,8]  x              an input, read in 16 bits
MatMul_a               MatMul  op     f16   f16  f16  f16[4,8]  x_f16_cast,w   a Tensor Core accumulates it in FP32
Relu_b                 Relu    op     f16   f16  f16  f16[4,8]  MatMul_a       adds no more rounding than its storage; stored in f16: no choice writes fewer bytes
b_f32_cast             Cast    cast   both  f32  f32  f32[4,8]  Relu_b         read by arithmetic in FP32
If_y                   If      op     f32   f32  f32  f32[4,8]  k,If_y/then_branch/Exp_p,If_y/else_branch/q_f32_cast
If_y/then_branch/Exp_p Exp     op     both  f32  f32  f32[4,8]  b_f32_cast     its result can leave the range of FP16, or it is steep
If_y/else_branch/MatMul_c MatMul  op     f16   f16  f16  f16[4,8]  Relu_b,w       a Tensor Core accumulates it in FP32
If_y/else_branch/Identity_q Identity view   f16   f16  f16  f16[4,8]  If_y/else_branch/MatMul_c moves values without computing; stored in f16: no choice writes fewer bytes
If_y/else_branch/q_f32_cast Cast    cast   both  f32  f32  f32[4,8]  If_y/else_branch/Identity_q read by arithmetic in FP32
return y               y       output f32   f32  f32  f32[4,8]  If_y""",
    )


def test_a_plan_is_shown_without_its_model(branch: Path) -> None:
    plan = Plan.from_json(rewrite(read_model(branch)).plan.to_json())
    view = view_of_plan(plan, "plan.json")
    assert View.from_json(view.to_json()) == view
    assert_expected_inline(
        lines(view.nodes),
        """\
x                      input   input  f32        f32  f32 x 32
x.f16                  cast    cast   both  f32  f16  f16 x 32  x              an input, read in 16 bits
w                      Initializer input  f16   f16  f16  f16 x 64                 stored in the precision that its readers want; If_y/else_branch/MatMul_c reads it, but it holds integers between 0 and 4; stored in f16: no choice writes fewer bytes
MatMul_a               MatMul  op     f16   f16  f16  f16 x 32  x.f16,w        a Tensor Core accumulates it in FP32
Relu_b                 Relu    op     f16   f16  f16  f16 x 32  MatMul_a       adds no more rounding than its storage; stored in f16: no choice writes fewer bytes
b.f32                  cast    cast   both  f32  f32  f32 x 32  Relu_b         read by arithmetic in FP32
If_y/result_0          If result op     f32   f32  f32  f32 x 32  If_y/then_branch/Exp_p,If_y/else_branch/q.f32 it follows If_y/then_branch/Exp_p, whose result may not fit FP16
If_y/then_branch/Exp_p Exp     op     f32   f32  f32  f32 x 16  b.f32          its result can leave the range of FP16, or it is steep
If_y/else_branch/MatMul_c MatMul  op     f16   f16  f16  f16 x 16  Relu_b,w       a Tensor Core accumulates it in FP32
If_y/else_branch/Identity_q Identity op     f16   f16  f16  f16 x 16  If_y/else_branch/MatMul_c moves values without computing; stored in f16: no choice writes fewer bytes
If_y/else_branch/q.f32 cast    cast   both  f32  f32  f32 x 16  If_y/else_branch/Identity_q read by arithmetic in FP32""",
    )


def test_memory_follows_the_last_reader(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[256] x) => (float[256] y) {
       a = Exp(x)
       shape = Constant<value_ints = [16, 16]>()
       b = Reshape(a, shape)
       c = Neg(x)
       back = Constant<value_ints = [256]>()
       d = Reshape(b, back)
       y = Add(c, d)
    }"""
    file = tmp_path / "views.onnx"
    onnx.save(parser.parse_model(text), file)
    alive = {node.op: node.alive for node in view_of_onnx(file, "").nodes if node.role == "op"}
    # x and a; then c, while the view b keeps a alive; then y, while d does. A shape is freed once
    # it is read.
    assert alive == {"Exp": 2 * 1024, "Neg": 3 * 1024, "Add": 4 * 1024}
