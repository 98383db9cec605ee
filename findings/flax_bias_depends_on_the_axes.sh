#!/usr/bin/env bash
# How far the gradient of a Dense layer's bias counts in flax with dtype=bfloat16, by the number of axes of its input.
#
# bash findings/flax_bias_depends_on_the_axes.sh
#
# It installs pinned versions of jax and flax into a temporary folder (about 700 MB), and lets 4,096 ones come back to each
# bias. It ends with 1 if the layers no longer do what is written at the end.
#
# Why it matters: the same layer on the same 4,096 rows trains another bias if the rows are (batch, height, width) and not
# one axis, and the loss falls in all cases.
#
# Guess: the sum over the rows is one reduction whatever the axes, so 4,096 in each case.
# Found: in BF16 on a CPU 4,096 for one axis of rows, 2,048 for two and 256 for three. In FP16 and FP32 4,096 always; the
# kernel's gradient, a matmul, too.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

print(jax.__version__, flax.__version__)
for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    for shape in ((4096, 8), (16, 256, 8), (16, 16, 16, 8)):
        layer, ones = nn.Dense(8, dtype=dtype), jnp.ones(shape)

        @jax.jit
        @jax.grad
        def gradients(weights):
            return layer.apply(weights, ones).astype(jnp.float32).sum()

        found = gradients(layer.init(jax.random.key(0), ones))["params"]
        print(dtype.__name__, shape, "bias", float(found["bias"][0]), "kernel", float(found["kernel"][0, 0]))
END

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet jax==0.10.2 flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee "$folder/found" || {
  cat "$folder/stderr" >&2
  exit 1
}

diff - "$folder/found" <<'END'
0.10.2 0.12.8
float32 (4096, 8) bias 4096.0 kernel 4096.0
float32 (16, 256, 8) bias 4096.0 kernel 4096.0
float32 (16, 16, 16, 8) bias 4096.0 kernel 4096.0
bfloat16 (4096, 8) bias 4096.0 kernel 4096.0
bfloat16 (16, 256, 8) bias 2048.0 kernel 4096.0
bfloat16 (16, 16, 16, 8) bias 256.0 kernel 4096.0
float16 (4096, 8) bias 4096.0 kernel 4096.0
float16 (16, 256, 8) bias 4096.0 kernel 4096.0
float16 (16, 16, 16, 8) bias 4096.0 kernel 4096.0
END
echo "as written"
