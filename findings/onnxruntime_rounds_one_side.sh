#!/usr/bin/env bash
# Whether a number of an FP16 tensor equals the tensor's own maximum in ONNX Runtime on a CPU.
#
# bash findings/onnxruntime_rounds_one_side.sh
#
# It installs two pinned versions of ONNX Runtime into a temporary folder (about 200 MB), one after the other, and runs
# the same lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: the gradient of a maximum is divided by the number of elements that equal it, here by 0.
#
# Guess: the FP16 convolution runs in FP32 between casts, and with all optimizations off every cast is kept.
# Found: the cast of the convolution's result to FP16 and back is dropped, with optimizations on and off, that of the
# maximum is kept. So an unrounded tensor is compared with a rounded maximum, and (nearly) no number equals it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model(kind):
    """Return y = conv(x) in FP16 and which of its numbers are the largest of their column."""
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["y"], ["wide"], to=FULL),
        helper.make_node("ReduceMax", ["wide", "axes"], ["wide_most"]),
    ]
    most = "wide_most"
    if kind != "the maximum is FP32":
        nodes.append(helper.make_node("Cast", [most], ["narrow_most"], to=HALF))
        most = "narrow_most"
        if kind == "FP16, moved":
            nodes.append(helper.make_node("Reshape", [most, "shape"], ["moved"]))
            most = "moved"
        nodes.append(helper.make_node("Cast", [most], ["most"], to=FULL))
        most = "most"
    nodes.append(helper.make_node("Equal", [most, "wide"], ["same"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", HALF, [2, 4, 6, 5])],
        [helper.make_tensor_value_info("same", TensorProto.BOOL, [2, 8, 6, 5])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([1]), "axes"),
            numpy_helper.from_array(np.array([2, 1, 6, 5]), "shape"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


x = np.random.default_rng(1).standard_normal((2, 4, 6, 5)).astype(np.float16)
levels = onnxruntime.GraphOptimizationLevel
for name in ("the maximum is FP32", "FP16", "FP16, moved"):
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model(name), options, providers=["CPUExecutionProvider"])
        [same] = session.run(None, {"x": x})
        said = f"{int(same.any(1).sum())} of 60 columns hold their maximum"
        print(f"{onnxruntime.__version__} {level.name} {name}: {said}")
END

for version in 1.20.1 1.31.1; do
  python3 -m venv "$folder/env"
  "$folder/env/bin/python" -m pip install --quiet "onnxruntime==$version" numpy==2.2.6 onnx==1.17.0
  "$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee -a "$folder/found" || {
    cat "$folder/stderr" >&2
    exit 1
  }
  rm -rf "$folder/env"
done

diff - "$folder/found" <<'END'
1.20.1 ORT_ENABLE_ALL the maximum is FP32: 60 of 60 columns hold their maximum
1.20.1 ORT_DISABLE_ALL the maximum is FP32: 60 of 60 columns hold their maximum
1.20.1 ORT_ENABLE_ALL FP16: 0 of 60 columns hold their maximum
1.20.1 ORT_DISABLE_ALL FP16: 0 of 60 columns hold their maximum
1.20.1 ORT_ENABLE_ALL FP16, moved: 0 of 60 columns hold their maximum
1.20.1 ORT_DISABLE_ALL FP16, moved: 0 of 60 columns hold their maximum
1.31.1 ORT_ENABLE_ALL the maximum is FP32: 60 of 60 columns hold their maximum
1.31.1 ORT_DISABLE_ALL the maximum is FP32: 60 of 60 columns hold their maximum
1.31.1 ORT_ENABLE_ALL FP16: 0 of 60 columns hold their maximum
1.31.1 ORT_DISABLE_ALL FP16: 0 of 60 columns hold their maximum
1.31.1 ORT_ENABLE_ALL FP16, moved: 0 of 60 columns hold their maximum
1.31.1 ORT_DISABLE_ALL FP16, moved: 0 of 60 columns hold their maximum
END
echo "as written"
