"""Print how an exported training step writes each op that torch's derivatives call.

    python -m bench.onnx.derivatives

The ops are read from the table of derivatives that torch is built from: each backward op that a
formula calls. Those without a way make `mpcompile export --to train.onnx` refuse a program.
"""

from __future__ import annotations

import re
from collections import defaultdict
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from mpcompile.onnx.plain_ops import PLAIN
from mpcompile.torch_private.exporter import decomposes, is_translated

_TABLE = Path(torch.__file__).parents[1] / "torchgen/packaged/autograd/derivatives.yaml"
_ELSEWHERE = re.compile(r"mkldnn|miopen|mps|cudnn|sparse|nested|_efficient_|overrideable")
"""Ops of devices and layouts for which no step is exported."""


class Way(Enum):
    """How an op becomes ONNX."""

    OURS = "written out here (`onnx/plain_ops.py`)"
    TORCH = "written in other ops by torch"
    EXPORTER = "translated by PyTorch's exporter"
    NONE = "refused"


def backward_ops() -> tuple[str, ...]:
    """Return the names of all ATen ops that derivatives call and that have backward in the name."""
    called = set(re.findall(r"\b(\w*_backward\w*)\(", _TABLE.read_text()))
    names = {name.removesuffix("_symint") for name in called}
    return tuple(
        sorted(n for n in names if hasattr(torch.ops.aten, n) and not _ELSEWHERE.search(n))
    )


def way_of(name: str) -> Way:
    """Return how an ATen op becomes ONNX."""
    if name in PLAIN:
        return Way.OURS
    packet: Any = getattr(torch.ops.aten, name)
    ops = [getattr(packet, overload) for overload in packet.overloads()]
    if any(is_translated(op) for op in ops):
        return Way.EXPORTER
    return Way.TORCH if any(decomposes(op) for op in ops) else Way.NONE


def main() -> None:
    """Print the table in Markdown."""
    found = defaultdict[Way, list[str]](list)
    for name in backward_ops():
        found[way_of(name)].append(f"`{name}`")
    print("| how | ops |\n|---|---|")
    for way in Way:
        if found[way]:
            print(f"| {way.value} | {', '.join(found[way])} |")


if __name__ == "__main__":
    main()
