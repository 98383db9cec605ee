#!/usr/bin/env bash
# What torch.compile returns for an op that changes nothing, such as x + 0: memory of its own, or its input.
#
# bash findings/inductor_returns_its_input.sh
#
# It installs two pinned versions of torch into a temporary folder (about 7 GB), one after the other, and runs the
# same lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: the caller may write to x in place. In eager PyTorch x + 0 keeps its value, compiled it changes with x.
#
# Guess after a first look at integers in 2.14: 2.13 never returns the input; 2.14 does for integers alone, as -0.0 + 0 is 0.0.
# Found: 2.14 does it for floating-point numbers too, and 2.13 does it already where a tensor of zeros is added.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import torch

WAYS = {
    "x + 0": lambda x: x + 0,
    "x * 1": lambda x: x * 1,
    "x + zeros_like(x)": lambda x: x + torch.zeros_like(x),
    "x.clone()": lambda x: x.clone(),
}
for dtype in (torch.int64, torch.float32):
    for name, way in WAYS.items():
        torch._dynamo.reset()
        x = torch.arange(1, 4).to(dtype)
        eager, compiled = way(x), torch.compile(way)(x)
        x.add_(1)
        said = "as eager" if torch.equal(eager, compiled) else "changes with x"
        print(f"{torch.__version__.partition('+')[0]} {dtype} {name}: {said}")
END

for version in 2.13.0 2.14.1; do
  python3 -m venv "$folder/env"
  "$folder/env/bin/python" -m pip install --quiet "torch==$version" numpy==2.4.6 setuptools==84.2.1
  "$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee -a "$folder/found" || {
    cat "$folder/stderr" >&2
    exit 1
  }
  rm -rf "$folder/env"
done

diff - "$folder/found" <<'END'
2.13.0 torch.int64 x + 0: as eager
2.13.0 torch.int64 x * 1: as eager
2.13.0 torch.int64 x + zeros_like(x): changes with x
2.13.0 torch.int64 x.clone(): as eager
2.13.0 torch.float32 x + 0: as eager
2.13.0 torch.float32 x * 1: as eager
2.13.0 torch.float32 x + zeros_like(x): changes with x
2.13.0 torch.float32 x.clone(): as eager
2.14.1 torch.int64 x + 0: changes with x
2.14.1 torch.int64 x * 1: changes with x
2.14.1 torch.int64 x + zeros_like(x): changes with x
2.14.1 torch.int64 x.clone(): as eager
2.14.1 torch.float32 x + 0: changes with x
2.14.1 torch.float32 x * 1: changes with x
2.14.1 torch.float32 x + zeros_like(x): changes with x
2.14.1 torch.float32 x.clone(): as eager
END
echo "as written"
