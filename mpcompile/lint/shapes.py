"""MP401: row lengths for which a Tensor Core has no aligned loads."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import Node, Program

TILE = 8
"""How many 16-bit numbers an aligned load of 16 bytes reads."""

LEAST_FLOPS = 1 << 24
"""An op with fewer FLOPs takes less time than the launch of its kernel."""

LEAST_SHARE = 0.01
"""An op with a smaller share of the program's work is not worth a change of shape."""

_IMAGE = 4
"""Images have at most this many channels, and cuDNN pads them."""


def misaligned_shapes(program: Program) -> Iterator[Finding]:
    """MP401: a Tensor-Core op whose rows in memory are no multiple of eight numbers."""
    whole = sum(node.flops for node in program.nodes if node.narrow)
    for node in program.nodes:
        worth = node.flops >= max(LEAST_FLOPS, LEAST_SHARE * whole)
        if not (node.narrow and worth):
            continue
        for size in node.sizes:
            if size.count % TILE == 0 or (node.row == "conv" and size.count <= _IMAGE):
                continue
            wide = -(-size.count // TILE) * TILE
            yield _finding(node, size.name, size.count, wide, size.padded, whole)


def _finding(node: Node, name: str, count: int, wide: int, padded: bool, whole: int) -> Finding:
    message = f"{count:,} {name} are no multiple of {TILE}"
    fix = f"use {wide:,} ({wide - count} more, {wide / count - 1:.1%} more work)"
    if padded:
        return node.finding(
            "MP401",
            Severity.NOTE,
            f"{message}; the pass pad_vocabulary makes them {wide:,}",
            f"nothing, or {fix}",
        )
    return node.finding(
        "MP401",
        Severity.WARNING,
        f"{message}, so rows of {node.op} are not aligned to 16 bytes, as Tensor-Core kernels load "
        "them",
        fix,
        f"{node.flops / whole:.0%} of the forward pass's FLOPs",
    )
