#!/usr/bin/env bash
# What torch.export makes of a buffer that forward assigns (self.count = self.count + 1).
#
# bash findings/export_drops_an_assigned_buffer.sh
#
# It installs two pinned versions of torch into a temporary folder (about 7 GB), one after the other, and runs the
# same lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: the exported program computes something else at each call, and nothing says so.
#
# Guess: the assignment is recorded as a write to the buffer, or refused.
# Found: without `strict` the buffer of the exported module itself is written, but that of a module inside another one
# is not; with `strict` neither is. There is no error. `self.count += 1` and `self.count.add_(1)` work everywhere.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import warnings

import torch

warnings.simplefilter("ignore")


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))


class Assigns(Counts):
    def forward(self, x):
        self.count = self.count + 1
        return x * self.count


class AssignsFirst(Counts):
    def forward(self, x):
        y = x * (self.count + 1)
        self.count = self.count + 1
        return y


class Adds(Counts):
    def forward(self, x):
        self.count += 1
        return x * self.count


class Writes(Counts):
    def forward(self, x):
        self.count.add_(1)
        return x * self.count


class Inside(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    @property
    def count(self):
        return self.inner.count


x = torch.ones(2)
version = torch.__version__.partition("+")[0]
KINDS = {
    "assigns": Assigns,
    "assigns after use": AssignsFirst,
    "assigns, inside another module": lambda: Inside(Assigns()),
    "+=": Adds,
    "+=, inside another module": lambda: Inside(Adds()),
    "add_, inside another module": lambda: Inside(Writes()),
}
for name, kind in KINDS.items():
    for strict in (False, True):
        try:
            program = torch.export.export(kind(), (x,), strict=strict).module()
            held = program.inner if hasattr(program, "inner") else program
            found = f"{[float(program(x)[0]) for _ in range(3)]}, count {float(held.count)}"
        except Exception as error:
            found = f"{type(error).__name__}"
        model = kind()
        eager = f"{[float(model(x)[0]) for _ in range(3)]}, count {float(model.count)}"
        said = "as eager" if found == eager else f"{found} for {eager}"
        print(f"{version} strict={strict} {name}: {said}")
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
2.13.0 strict=False assigns: as eager
2.13.0 strict=True assigns: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.13.0 strict=False assigns after use: as eager
2.13.0 strict=True assigns after use: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.13.0 strict=False assigns, inside another module: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.13.0 strict=True assigns, inside another module: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.13.0 strict=False +=: as eager
2.13.0 strict=True +=: as eager
2.13.0 strict=False +=, inside another module: as eager
2.13.0 strict=True +=, inside another module: as eager
2.13.0 strict=False add_, inside another module: as eager
2.13.0 strict=True add_, inside another module: as eager
2.14.1 strict=False assigns: as eager
2.14.1 strict=True assigns: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.14.1 strict=False assigns after use: as eager
2.14.1 strict=True assigns after use: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.14.1 strict=False assigns, inside another module: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.14.1 strict=True assigns, inside another module: [1.0, 1.0, 1.0], count 0.0 for [1.0, 2.0, 3.0], count 3.0
2.14.1 strict=False +=: as eager
2.14.1 strict=True +=: as eager
2.14.1 strict=False +=, inside another module: as eager
2.14.1 strict=True +=, inside another module: as eager
2.14.1 strict=False add_, inside another module: as eager
2.14.1 strict=True add_, inside another module: as eager
END
echo "as written"
