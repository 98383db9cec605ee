#!/usr/bin/env bash
# Which libraries take the softmax and the log_softmax of many equal FP16 numbers.
#
# bash findings/softmax_of_many_halves.sh
#
# It installs pinned versions of torch, jax, tensorflow-cpu, onnxruntime and openvino into a temporary folder (about 4 GB).
# It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: a language model with 128,256 words begins with nearly equal logits. A sum of 65,520 ones is infinite in
# FP16, so softmax over them is zero and log_softmax is -inf where the library adds in FP16.
#
# Guess: every library adds in FP32 inside softmax; so 1 / 70,000, and a logarithm of -11.16.
# Found: softmax is right in torch, tensorflow, onnxruntime and openvino, and zero in jax. log_softmax in torch is right over
# the first of two axes and -inf over the last one, from 65,520 numbers on; jax and tensorflow give -inf too.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import os

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import openvino
import tensorflow as tf
import torch
from onnx import helper

COUNT = 70_000


def exported(op):
    kind = onnx.TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, kind, [1, COUNT]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], axis=-1)], "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def said(name, op, result):
    print(name, op, f"{float(np.asarray(result, np.float32).flatten()[0]):.3g}")


zeros = np.zeros((1, COUNT), np.float16)
for op, ours in (("softmax", "Softmax"), ("log_softmax", "LogSoftmax")):
    function = getattr(torch, op)
    said(f"torch {torch.__version__.split('+')[0]}", f"{op} last", function(torch.tensor(zeros), -1))
    said(f"torch {torch.__version__.split('+')[0]}", f"{op} first", function(torch.tensor(zeros.T.copy()), 0))
    said(f"jax {jax.__version__}", op, getattr(jax.nn, op)(jnp.asarray(zeros)))
    said(f"tensorflow {tf.__version__}", op, getattr(tf.nn, op)(tf.constant(zeros)))
    session = onnxruntime.InferenceSession(exported(ours))
    said(f"onnxruntime {onnxruntime.__version__}", op, session.run(None, {"x": zeros})[0])
    model = openvino.compile_model(openvino.Core().read_model(exported(ours)), "CPU")
    said(f"openvino {openvino.__version__.split('-')[0]}", op, model([zeros])[0])
END

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 jax==0.10.2 tensorflow-cpu==2.21.0 onnx==1.23.2 \
  onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
"$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee "$folder/found" || {
  cat "$folder/stderr" >&2
  exit 1
}

diff - "$folder/found" <<'END'
torch 2.13.0 softmax last 1.43e-05
torch 2.13.0 softmax first 1.43e-05
jax 0.10.2 softmax 0
tensorflow 2.21.0 softmax 1.43e-05
onnxruntime 1.32.0 softmax 1.43e-05
openvino 2026.4.1 softmax 1.43e-05
torch 2.13.0 log_softmax last -inf
torch 2.13.0 log_softmax first -11.2
jax 0.10.2 log_softmax -inf
tensorflow 2.21.0 log_softmax -inf
onnxruntime 1.32.0 log_softmax -11.2
openvino 2026.4.1 log_softmax -11.2
END
echo "as written"
