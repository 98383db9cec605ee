#!/usr/bin/env bash
# Where the momentum of torch.optim.SGD begins if GradScaler skips the first step.
#
# bash findings/fused_sgd_begins_with_old_memory.sh
#
# It installs a pinned version of torch into a temporary folder (about 3 GB). It ends with 1 if the two optimizers no longer
# do what is written at the end.
#
# Why it matters: with GradScaler's first scale the first step is skipped as a rule. Momentum then begins with what was in
# memory, and some of it stays for tens of steps.
#
# Guess: a skipped step leaves no state, with fused=True too; so momentum is 1 after the first gradient of ones.
# Found: SGD without fused=True has no momentum after the skipped step, and 1 after the next. With fused=True momentum is
# there after the skipped step, in memory that nobody has written: torch's deterministic mode, which fills such memory with
# nan, shows nan there and after the next step. Without that mode it is what was there, so the script would not print
# the same each time.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import torch

print(torch.__version__.split("+")[0])
torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with nan
for fused in (False, True):
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for gradient in (float("inf"), 1.0):
        scaler.scale(torch.zeros(()))
        weight.grad = torch.full_like(weight, gradient)
        scaler.step(optimizer)
        scaler.update(1.0)
        momentum = optimizer.state[weight].get("momentum_buffer")
        print(f"fused={fused} gradient {gradient} momentum {None if momentum is None else momentum[0].item()}")
END

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee "$folder/found" || {
  cat "$folder/stderr" >&2
  exit 1
}

diff - "$folder/found" <<'END'
2.13.0
fused=False gradient inf momentum None
fused=False gradient 1.0 momentum 1.0
fused=True gradient inf momentum nan
fused=True gradient 1.0 momentum nan
END
echo "as written"
