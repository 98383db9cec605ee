#!/usr/bin/env bash
# How far the gradient of a bias counts in Keras under its BF16 policy, on a CPU.
#
# bash findings/keras_stops_a_bias_at_256.sh
#
# It installs pinned versions of keras and tensorflow-cpu into a temporary folder (about 1.5 GB), and lets 4,096 ones come
# back to the bias of a Dense layer. It ends with 1 if the layer no longer does what is written at the end.
#
# Why it matters: under the policy mixed_bfloat16 the bias of a layer that reads 4,096 rows (32
# texts of 128 words) gets a sixteenth of its gradient, the loss falls, and no number is infinite. PyTorch's linear adds the
# same 4,096 ones to 4,096.
#
# Guess: the bias's gradient is a sum like any other, with an FP32 accumulator, so 4,096; or XLA at least, which computes
# BF16 in FP32 on a CPU, gives it.
# Found: 256, with and without XLA. The kernel's gradient, a matmul, is 4,096. In FP16 both are 4,096.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import os

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
import keras
import tensorflow as tf

print(keras.__version__, tf.__version__)


def gradients(xla):
    layer, shape = keras.layers.Dense(8), (4096, 8)
    layer.build(shape)

    @tf.function(jit_compile=xla)
    def run(x):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.cast(layer(x), tf.float32))
        return tape.gradient(total, [layer.bias, layer.kernel])

    bias, kernel = run(tf.ones(shape))
    return float(tf.reshape(bias, [-1])[0]), float(tf.reshape(kernel, [-1])[0])


for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
    keras.config.set_dtype_policy(policy)
    for xla in (False, True):
        bias, kernel = gradients(xla)
        print(policy, "XLA" if xla else "no XLA", "bias", bias, "kernel", kernel)
END

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet keras==3.15.1 tensorflow-cpu==2.21.0 numpy==2.2.6
"$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee "$folder/found" || {
  cat "$folder/stderr" >&2
  exit 1
}

diff - "$folder/found" <<'END'
3.15.1 2.21.0
float32 no XLA bias 4096.0 kernel 4096.0
float32 XLA bias 4096.0 kernel 4096.0
mixed_bfloat16 no XLA bias 256.0 kernel 4096.0
mixed_bfloat16 XLA bias 256.0 kernel 4096.0
mixed_float16 no XLA bias 4096.0 kernel 4096.0
mixed_float16 XLA bias 4096.0 kernel 4096.0
END
echo "as written"
