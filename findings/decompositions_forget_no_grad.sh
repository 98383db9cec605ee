#!/usr/bin/env bash
# Whether ExportedProgram.run_decompositions({}) keeps the gradients of an exported module.
#
# bash findings/decompositions_forget_no_grad.sh
#
# It installs two pinned versions of torch into a temporary folder (about 7 GB), one after the other, and runs the
# same lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: the program that is trained after this call has other gradients than the one that was exported.
#
# Guess: with no decomposition asked for, only the mutation becomes functional, and gradients stay.
# Found: they flow through what ran under torch.no_grad(), and even through detach().
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import warnings

import torch

warnings.simplefilter("ignore")


class Centred(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))


class Copies(Centred):
    def forward(self, x):
        h = x * self.weight
        with torch.no_grad():
            self.mean.copy_(0.5 * self.mean + 0.5 * h)
        return (h * self.mean).sum()


class Detaches(Centred):
    def forward(self, x):
        h = x * self.weight
        self.mean.copy_(0.5 * self.mean + 0.5 * h.detach())
        return (h * self.mean).sum()


class Reads(Centred):
    def forward(self, x):
        h = x * self.weight
        with torch.no_grad():
            factor = h * 2
        return (h * factor).sum()


def gradient(model, x):
    weight = dict(model.named_parameters())["weight"]
    weight.grad = None
    model(x).backward()
    return weight.grad.tolist()


x = torch.tensor([1.0, 2.0, 3.0])
version = torch.__version__.partition("+")[0]
for kind in (Copies, Reads, Detaches):
    eager = gradient(kind(), x)
    program = torch.export.export(kind(), (x,), strict=False)
    for name, made in (
        ("export", lambda: program.module()),
        ("run_decompositions({})", lambda: program.run_decompositions({}).module()),
    ):
        found = gradient(made(), x)
        said = "as eager" if found == eager else f"{found} for {eager}"
        print(f"{version} {kind.__name__}, {name}: {said}")
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
2.13.0 Copies, export: as eager
2.13.0 Copies, run_decompositions({}): [1.25, 5.0, 11.25] for [0.5, 2.0, 4.5]
2.13.0 Reads, export: as eager
2.13.0 Reads, run_decompositions({}): [4.0, 16.0, 36.0] for [2.0, 8.0, 18.0]
2.13.0 Detaches, export: as eager
2.13.0 Detaches, run_decompositions({}): [0.75, 3.0, 6.75] for [0.5, 2.0, 4.5]
2.14.1 Copies, export: as eager
2.14.1 Copies, run_decompositions({}): [1.25, 5.0, 11.25] for [0.5, 2.0, 4.5]
2.14.1 Reads, export: as eager
2.14.1 Reads, run_decompositions({}): [4.0, 16.0, 36.0] for [2.0, 8.0, 18.0]
2.14.1 Detaches, export: as eager
2.14.1 Detaches, run_decompositions({}): [0.75, 3.0, 6.75] for [0.5, 2.0, 4.5]
END
echo "as written"
