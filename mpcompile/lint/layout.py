"""MP501: convolutions whose input is not channels-last."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import SOURCES, Node, Program


def convolutions_not_channels_last(program: Program) -> Iterator[Finding]:
    """MP501: the first convolution that reads another layout; later ones are counted there."""
    first: dict[str, str] = {}
    later: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.op in SOURCES:
            continue
        before = next((first[name] for name in node.reads if name in first), None)
        if node.channels_last is True:
            before = None
        elif node.channels_last is False and node.narrow:
            before = before or node.id
            later.setdefault(before, []).append(node)
        if before is not None:
            first[node.id] = before
    for name, found in later.items():
        yield program.by_id[name].finding(
            "MP501",
            Severity.NOTE,
            "a 16-bit convolution reads an input that is not channels-last: Tensor-Core kernels "
            "want that layout, and inductor copies into it where it expects a gain",
            "give images in that layout, images.to(memory_format=torch.channels_last), or put "
            "x.contiguous(memory_format=torch.channels_last) before the convolution (after it, if "
            "it reads one channel or pixel); the ops after it keep the layout",
            f"{len(found)} convolutions, this is the first" if len(found) > 1 else "",
        )
