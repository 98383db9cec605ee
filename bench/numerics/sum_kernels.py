"""Measure which kernels of torch add up 16-bit terms in 16 bits.

``python -m bench.numerics.sum_kernels [--device cuda]``

Each op of ``tests/programs/long_sums/additions.py`` adds 20,000 ones to one element. In 16 bits
such a sum ends at 2,048 (FP16) or 256 (BF16); a kernel that adds in FP32 gives 20,000, rounded.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from bench.machine import describe
from bench.root import ROOT

sys.path.append(str(ROOT / "tests"))

from programs.long_sums.additions import COUNT, IN_16_BITS, IN_FP32


def sums(name: str, device: str) -> list[str]:
    """Return what an op adds up to in FP16 and in BF16, or the name of what it raises."""
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        ones = torch.ones(COUNT, dtype=dtype, device=device)
        places = torch.zeros(COUNT, dtype=torch.long, device=device)
        try:
            with torch.device(device):
                result = (IN_16_BITS | IN_FP32)[name](ones, places)
        except RuntimeError as fault:
            found.append(type(fault).__name__)
        else:
            found.append(f"{float(result.max()):,.0f}")
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    print("| kernel | FP16 | BF16 |\n|---|---|---|")
    for name in IN_16_BITS | IN_FP32:
        print(f"| {name} | {' | '.join(sums(name, device))} |", flush=True)
    print(json.dumps(describe(device)))


if __name__ == "__main__":
    main()
