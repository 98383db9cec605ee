"""Run one op in one format in the installed ONNX Runtime on a CPU and report the result."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from bench.onnx import cases as onnx_cases
from mpcompile.onnx_graph.kernels import AS_HELD
from mpcompile.onnx_graph.signatures import signature

FORMATS = {"h": TensorProto.FLOAT16, "b": TensorProto.BFLOAT16, "f": TensorProto.FLOAT}
_INSERTED = "InsertedPrecisionFreeCast_"


@dataclass(frozen=True, slots=True)
class Probe:
    """An op to try.

    Attributes:
        case: a model of one node.
        letter: a key of `FORMATS`.
    """

    case: str
    letter: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The runtime's result for an op.

    Attributes:
        op: the op type.
        version: the version of the op.
        what: ``"kernel"``, ``"cast"`` (run in FP32 with casts of the runtime's own), ``"fails"``,
            or ``"invalid"``: ONNX itself does not allow it.
        why: the reason for a failure.
    """

    op: str
    version: int
    what: str
    why: str = ""


def single_ops() -> list[str]:
    """Return the cases whose model is one node of ONNX itself and has FP32 types."""
    found = []
    for name in onnx_cases.names():
        if not name.startswith("node/"):
            continue
        model = onnx_cases.case_of(name).model
        nodes = model.graph.node
        alone = len(nodes) == 1 and not nodes[0].domain and nodes[0].op_type not in AS_HELD
        if alone and onnx_cases.holds_full(model):
            found.append(name)
    return found


def probe(task: Probe) -> Answer:
    """Run one op in the runtime in a format; an op that cannot be loaded is also an answer."""
    import onnxruntime  # a crash must end this process and not the one that waits for it

    model = onnx.ModelProto()
    model.CopyFrom(onnx_cases.case_of(task.case).model)
    (node,) = model.graph.node
    opset = next(each.version for each in model.opset_import if not each.domain)
    version = onnx.defs.get_schema(node.op_type, opset).since_version
    _retype(model, node, opset, FORMATS[task.letter])
    model.ir_version = min(model.ir_version, 10)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return Answer(node.op_type, version, "invalid", str(error))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.fspath(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            return Answer(node.op_type, version, "fails", str(error))
        after = onnx.load(options.optimized_model_filepath)
    inserted = any(_INSERTED in name for each in after.graph.node for name in each.output)
    inserted |= any(each.name.startswith(_INSERTED) for each in after.graph.node)
    return Answer(node.op_type, version, "cast" if inserted else "kernel")


def _retype(model: onnx.ModelProto, node: onnx.NodeProto, opset: int, element: int) -> None:
    """Change the type of the tensors of the node's main type variable, except in inner graphs."""
    found = signature(node.op_type, "", opset)
    assert found is not None
    full = {
        value.name: value
        for value in (*model.graph.input, *model.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    outputs = [(found.output(k), n) for k, n in enumerate(node.output) if n in full]
    inputs = [(found.input(k), n) for k, n in enumerate(node.input) if n in full]
    if not (outputs or inputs):
        return
    main = (outputs or inputs)[0][0]
    for variable, name in (*outputs, *inputs):
        if variable == main:
            full[name].type.tensor_type.elem_type = element


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("case", help="a name of `bench.onnx.cases`, as node/test_relu")
    parser.add_argument("letter", choices=FORMATS)
    given = parser.parse_args()
    print(probe(Probe(given.case, given.letter)))
