#!/usr/bin/env bash
# Whether torch.compile keeps ctx.set_materialize_grads(False) of an autograd Function.
#
# bash findings/dynamo_ignores_materialize_grads.sh
#
# It installs two pinned versions of torch into a temporary folder (about 7 GB), one after the other, and runs the
# same lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: a backward that asks "is None" takes another branch, and the weights train on a wrong gradient.
#
# Guess: Dynamo refuses the call, as it refuses other methods of the context, and the Function runs uncompiled.
# Found: it accepts the call without a word, with every backend, and the backward gets zeros in place of None.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import torch


class Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, first, second):
        return first * 2 if second is None else second * 3


def loss(x):
    return Two.apply(x)[0].sum()


def gradient(function):
    x = torch.ones(2, requires_grad=True)
    function(x).backward()
    return x.grad.tolist()


version = torch.__version__.partition("+")[0]
print(f"{version} not compiled: {gradient(loss)}")
for backend in ("eager", "aot_eager"):
    torch._dynamo.reset()
    print(f"{version} {backend}: {gradient(torch.compile(loss, backend=backend))}")
END

for version in 2.13.0 2.15.0; do
  python3 -m venv "$folder/env"
  "$folder/env/bin/python" -m pip install --quiet "torch==$version" numpy==2.4.6 setuptools==84.2.1
  "$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee -a "$folder/found" || {
    cat "$folder/stderr" >&2
    exit 1
  }
  rm -rf "$folder/env"
done

diff - "$folder/found" <<'END'
2.13.0 not compiled: [2.0, 2.0]
2.13.0 eager: [0.0, 0.0]
2.13.0 aot_eager: [0.0, 0.0]
2.15.0 not compiled: [2.0, 2.0]
2.15.0 eager: [0.0, 0.0]
2.15.0 aot_eager: [0.0, 0.0]
END
echo "as written"
