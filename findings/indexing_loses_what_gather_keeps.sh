#!/usr/bin/env bash
# Whether four ways to read one row of a 16-bit table many times have the same gradient in torch on a CPU.
#
# bash findings/indexing_loses_what_gather_keeps.sh
#
# It installs two pinned versions of torch into a temporary folder (about 7 GB), one after the other, and runs the same
# lines on each. It ends with 1 if one of them no longer does what is written at the end.
#
# Why it matters: forward is the same, so nothing shows that the gradient of a table is lost in 16 bits.
#
# Guess: all of them add the gradients of one row in FP32 and round once, as a matrix product does.
# Found: table[places] and F.embedding add in the format itself and stop at 2,048 (FP16) or 256 (BF16); index_select
# and gather, which read the same numbers, do not. So a way to write a line decides if the gradient is right.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import torch
from torch.nn import functional as F

places = torch.zeros(20_000, dtype=torch.long)
ways = {
    "table[places]": lambda table: table[places],
    "F.embedding": lambda table: F.embedding(places, table),
    "index_select": lambda table: table.index_select(0, places),
    "gather": lambda table: table.gather(0, places[:, None].expand(-1, 4)),
}
for dtype in (torch.float16, torch.bfloat16):
    for name, read in ways.items():
        table = torch.ones(2, 4, dtype=dtype, requires_grad=True)
        read(table).backward(torch.ones(20_000, 4, dtype=dtype))
        print(torch.__version__.split("+")[0], str(dtype)[6:], name, int(table.grad[0, 0]))
END

for version in 2.13.0 2.14.1; do
  python3 -m venv "$folder/env"
  "$folder/env/bin/python" -m pip install --quiet "torch==$version" numpy
  "$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee -a "$folder/found" || {
    cat "$folder/stderr" >&2
    exit 1
  }
  rm -rf "$folder/env"
done

diff - "$folder/found" <<'END'
2.13.0 float16 table[places] 2048
2.13.0 float16 F.embedding 2048
2.13.0 float16 index_select 20000
2.13.0 float16 gather 20000
2.13.0 bfloat16 table[places] 256
2.13.0 bfloat16 F.embedding 256
2.13.0 bfloat16 index_select 19968
2.13.0 bfloat16 gather 19968
2.14.1 float16 table[places] 2048
2.14.1 float16 F.embedding 2048
2.14.1 float16 index_select 20000
2.14.1 float16 gather 20000
2.14.1 bfloat16 table[places] 256
2.14.1 bfloat16 F.embedding 256
2.14.1 bfloat16 index_select 19968
2.14.1 bfloat16 gather 19968
END
echo "as written"
