"""The first node of a step that makes numbers that are not finite, and the cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf, log2
from typing import Literal

import torch
from torch import fx

from mpcompile.errors import printable
from mpcompile.numerics.lockstep import Moment, Seen, lockstep
from mpcompile.numerics.naming import kept_in_full, made_by
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.plan.dataflow import Where
from mpcompile.program.capture import source_position
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import BACKWARD, WHERE
from mpcompile.step.graph import results
from mpcompile.step.slots import Role
from mpcompile.torch_private.ops import number_arguments

_LISTED = 4
_NAMES = {torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32"}


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a node read.

    Attributes:
        name: the node that made it.
        type: dtype and shape, such as ``f16[8,32]``.
        largest: its largest finite magnitude.
        smallest: its smallest magnitude other than zero; 0 if all numbers are zero.
        zeros: the number of zeros.
        nonfinite: the number of values that are not finite.
    """

    name: str
    type: str
    largest: float
    smallest: float
    zeros: int
    nonfinite: int

    def __str__(self) -> str:
        parts = [
            f"{self.smallest:.3g} to {self.largest:.3g}"
            if self.largest
            else "no nonzero finite number"
        ]
        parts += [f"{self.zeros:,} zeros"] if self.zeros else []
        parts += [f"{self.nonfinite:,} not finite"] if self.nonfinite else []
        return f"{printable(self.name)} {self.type} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Cause:
    """The cause of a skipped step.

    Attributes:
        node: the first node, in execution order, that made numbers that are not finite.
        op: its op, or the role of an input.
        stage: ``forward`` or ``backward``.
        where: its source position in the user's program.
        why: a sentence without a full stop.
        reads: the tensors that it read.
        since: the node that rounded its divisor to zero, or empty.
        keep: ops of the plan that in FP32 could avoid it: the op of `since`, if there is one;
            otherwise the node's own op, or for a cast the ops that read it. Empty if the program is
            the cause.
        gradients: names of the weights whose gradients were not finite.
        fits_at: the largest power of two that as loss scale would have been small enough; None if
            the loss scale is not a cause.
    """

    node: str
    op: str
    stage: Literal["forward", "backward"]
    where: Where
    why: str
    reads: tuple[Operand, ...]
    since: str
    keep: tuple[str, ...]
    gradients: tuple[str, ...]
    fits_at: float | None

    def sentences(self, advice: str = "") -> list[str]:
        """Return the cause as text for a person, one sentence per line.

        Args:
            advice: a sentence on what mends it, for a cause that is not the loss scale.
        """
        module = f" in {self.where.module}" if self.where.module else ""
        said = [f"{self.node} ({self.op}, {self.stage}){module}: {self.why}."]
        if self.where.file:
            said.append(f"It comes from {self.where.file}:{self.where.line}.")
        if self.reads:
            said.append(f"It read {'; '.join(map(str, self.reads))}.")
        if self.gradients:
            more = len(self.gradients) - _LISTED
            names = ", ".join(self.gradients[:_LISTED]) + (f" and {more} more" if more > 0 else "")
            said.append(f"Gradients that are not finite: {names}.")
        if self.fits_at is not None:
            said.append(f"A loss scale of {self.fits_at:g} would have been small enough.")
        elif advice:
            said.append(advice)
        return [printable(line) for line in said]


def first_nonfinite(moment: Moment) -> Cause | None:
    """Run a step again and return the cause of its first number that is not finite, if any.

    A number that is not finite in FP64 either, such as the -inf of a mask, comes from the program.
    It is the cause only if there is no other, and a gradient is not finite.

    Args:
        moment: the inputs of the step.
    """
    gradients = {
        node: name.removeprefix("grad.")
        for name, node in results(moment.step.gradient.graph).items()
        if moment.step.slots[name].role is Role.GRADIENT
    }
    vanished: dict[str, fx.Node] = {}
    fault: Cause | None = None
    own: Cause | None = None
    hit: list[str] = []
    for seen in lockstep(moment):
        wrong = ~seen.ours.isfinite()
        if seen.node in gradients and bool(wrong.any()):
            hit.append(gradients[seen.node])
        if fault is not None:
            continue
        _note_zeros(seen, vanished)
        bad = wrong & seen.exact.isfinite()
        if bool(bad.any()):
            fault = _fault(seen, bad, vanished, moment)
        elif own is None and bool(wrong.any()) and _begins_here(seen):
            why = "it is not finite in FP64 either, so the program is the cause, not its precision"
            own = replace(_cause(seen, why), keep=())
    found = fault or (own if hit else None)
    return replace(found, gradients=tuple(hit)) if found else None


def _note_zeros(seen: Seen, vanished: dict[str, fx.Node]) -> None:
    """Note the node that first rounded a number to zero, if this tensor has the zero too."""
    zeros = seen.ours == 0
    if not bool((zeros & (seen.exact != 0)).any()):
        return
    if bool((zeros & (seen.own != 0)).any()):
        vanished[seen.node.name] = seen.node
        return
    first = next((vanished[name] for name, _ in seen.reads if name in vanished), None)
    if first is not None:
        vanished[seen.node.name] = first


def _begins_here(seen: Seen) -> bool:
    """Whether a node's inputs are all finite, and none of its arguments is an infinite number."""
    told = any(abs(number) == inf for number in number_arguments(seen.node).values())
    return not told and all(bool(value.isfinite().all()) for _, value in seen.reads)


def _fault(seen: Seen, bad: torch.Tensor, vanished: dict[str, fx.Node], moment: Moment) -> Cause:
    made = seen.own[bad]
    largest = torch.finfo(seen.ours.dtype).max
    most = float(made.abs().max())
    if most != most or most == inf:  # FP64 gives no finite result of these inputs either
        why = "with its inputs no result is finite"
        since = next((vanished[name] for name, _ in seen.reads if name in vanished), None)
        if since is None:
            return _cause(seen, why)
        where = _where(since)
        name = f"{since.name} ({where.file}:{where.line})" if where.file else since.name
        reason = f"{why}, because {name} rounded a nonzero number to 0"
        return _cause(seen, reason, since)
    if most <= largest:
        return _cause(seen, f"it computes {float(seen.ours[bad][0])}, but FP64 computes {most:.4g}")
    name = _NAMES[seen.ours.dtype]
    why = f"its result reaches {most:.4g}, beyond {largest:.5g}, the largest {name} number"
    scale = float(moment.values[SCALE]) if SCALE in moment.values else None
    if scale is None or seen.node not in BACKWARD:
        return _cause(seen, why)
    fits_at = 2.0 ** floor(log2(scale * largest / most))
    return _cause(seen, f"{why}, at a loss scale of {scale:g}", fits_at=fits_at)


def _cause(
    seen: Seen, why: str, since: fx.Node | None = None, fits_at: float | None = None
) -> Cause:
    node = seen.node
    return Cause(
        node=node.name,
        op=made_by(node),
        stage="backward" if node in BACKWARD else "forward",
        where=_where(node),
        why=why,
        reads=tuple(_operands(seen)),
        since=since.name if since else "",
        keep=kept_in_full(since or node),
        gradients=(),
        fits_at=fits_at,
    )


def _where(node: fx.Node) -> Where:
    where = WHERE.get(node)
    return where if isinstance(where, Where) else source_position(node)


def _operands(seen: Seen) -> Iterator[Operand]:
    for name, value in seen.reads:
        sizes = value.detach().abs().double()
        finite, nonzero = sizes.isfinite(), sizes != 0
        kept = sizes[finite & nonzero]
        yield Operand(
            name=name,
            type=type_text(value),
            largest=float(kept.max()) if kept.numel() else 0.0,
            smallest=float(kept.min()) if kept.numel() else 0.0,
            zeros=int((~nonzero).sum()),
            nonfinite=int((~finite).sum()),
        )
