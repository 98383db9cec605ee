"""Where a program is in pieces, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from mpcompile.errors import CompileError
from mpcompile.program.stack_lines import is_foreign
from mpcompile.torch_private.inductor import break_of

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Piece:
    """One graph of a program that runs in pieces.

    Attributes:
        ops: how many calls it has.
        casts: how many casts the plan has inserted.
        wide: why the whole piece stays in FP32; None if some of it is in 16 bits.
        ends_at: ``file:line`` of the Python code after it, None behind the last.
        because: why that code is not in a graph, None behind the last.
    """

    ops: int
    casts: int
    wide: str | None
    ends_at: str | None
    because: str | None

    def __str__(self) -> str:
        """Return what a person reads."""
        casts = f"{self.casts} cast{'s' * (self.casts != 1)}"
        precision = casts if self.wide is None else f"FP32, {self.wide}"
        end = f"; then {self.end}" if self.because else ""
        return f"{self.ops} op{'s' * (self.ops != 1)}, {precision}{end}"

    @property
    def end(self) -> str:
        """The place of the break, if it is known, and its reason."""
        return f"{self.ends_at}: {self.because}" if self.ends_at else str(self.because)


def piece_of(module: fx.GraphModule, casts: int, wide: str | None) -> Piece:
    """Describe a graph that Dynamo has made."""
    ops = sum(node.op.startswith("call_") for node in module.graph.nodes)
    reason, frames = break_of(module)
    own = [frame for frame in frames if not is_foreign(frame.filename)]
    at = f"{own[-1].filename}:{own[-1].lineno}" if own else None
    return Piece(ops, casts, wide, at if reason else None, reason)


def said(pieces: Sequence[Piece], why: CompileError) -> str:
    """Return the sentence that tells of the breaks of a program.

    Args:
        pieces: what Dynamo has made so far.
        why: the reason why the program is not one graph.
    """
    breaks = list(dict.fromkeys(p.end for p in pieces if p.because))
    if not breaks and why.where:  # Dynamo has given up a whole function, and says no line
        breaks = [why.where]
    more = f"; and {len(breaks) - _NAMED} more, see step.pieces" if len(breaks) > _NAMED else ""
    named = "; ".join(breaks[:_NAMED]) or "none yet"
    count = f"{len(pieces)} piece{'s' * (len(pieces) != 1)}"
    return f"the program runs in {count} ({why.what}); Python code between them: {named}{more}"
