"""Which node of a step was the first to make numbers that are not finite, and of what."""

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
from mpcompile.program.capture import place_of
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import BACKWARD, WHERE
from mpcompile.step.graph import results
from mpcompile.step.slots import Role
from mpcompile.torch_private.ops import number_arguments

_LISTED = 4
_NAMES = {torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32"}


@dataclass(frozen=True, slots=True)
class Operand:
    """What a node read.

    Attributes:
        name: the node that made it.
        type: ``f16[8,32]``.
        largest: its largest finite magnitude.
        smallest: its smallest magnitude but for zeros; 0 if it is all zeros.
        zeros: how many zeros it holds.
        nonfinite: how many of its numbers are not finite.
    """

    name: str
    type: str
    largest: float
    smallest: float
    zeros: int
    nonfinite: int

    def __str__(self) -> str:
        parts = [f"{self.smallest:.3g} to {self.largest:.3g}" if self.largest else "no size"]
        parts += [f"{self.zeros:,} zeros"] if self.zeros else []
        parts += [f"{self.nonfinite:,} not finite"] if self.nonfinite else []
        return f"{printable(self.name)} {self.type} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a step had to be skipped.

    Attributes:
        node: the first node of the step, in the order in which they run, that made it so.
        op: its op, or the role of an input.
        stage: ``forward`` or ``backward``.
        where: its place in the user's program.
        why: a sentence without a full stop.
        reads: what it read.
        since: the node that rounded to zero what this divides by, or empty.
        keep: ops of the plan that would have to be in FP32 for it: the node's own; those that read
            it, if it is a cast; the one that rounded to zero what this divides by.
        gradients: names of the weights whose gradients it reached.
        fits_at: the largest power of two that as loss scale would have been small enough; None if
            the loss scale has no part in it.
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

    def sentences(self) -> list[str]:
        """Return it for a person, a line a sentence."""
        place = f" in {self.where.module}" if self.where.module else ""
        said = [f"{self.node} ({self.op}, {self.stage}){place}: {self.why}."]
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
        elif self.keep:
            flags = " ".join(f"--full node:{name}" for name in self.keep)
            said.append(f"`{flags}` keeps it in FP32.")
        return [printable(line) for line in said]


def first_nonfinite(moment: Moment) -> Cause | None:
    """Run a step again and return what made its first number that is not finite, if any did.

    What is not finite in FP64 either, such as the -inf of a mask, is the program's own: it counts
    only if nothing else does and a NaN, or a gradient that is not finite, comes of it.

    Args:
        moment: what the step read.
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
            own = _cause(seen, "it is so in FP64 too, so it is the program, not its precision")
    found = fault or (own if hit else None)
    return replace(found, gradients=tuple(hit)) if found else None


def _note_zeros(seen: Seen, vanished: dict[str, fx.Node]) -> None:
    """Note which node first rounded to zero what stands as a zero in this tensor."""
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
    """Whether a node makes of finite numbers what is not finite, and not because it was told to."""
    told = any(abs(number) == inf for number in number_arguments(seen.node).values())
    return not told and all(bool(value.isfinite().all()) for _, value in seen.reads)


def _fault(seen: Seen, bad: torch.Tensor, vanished: dict[str, fx.Node], moment: Moment) -> Cause:
    made = seen.own[bad]
    largest = torch.finfo(seen.ours.dtype).max
    most = float(made.abs().max())
    if most != most or most == inf:  # not even FP64 makes anything finite of what was read
        why = "what it reads leaves no finite result"
        since = next((vanished[name] for name, _ in seen.reads if name in vanished), None)
        if since is None:
            return _cause(seen, why)
        place = _where(since)
        name = f"{since.name} ({place.file}:{place.line})" if place.file else since.name
        return _cause(seen, f"{why}, since {name} rounds to 0 what is not 0 in FP64", since)
    if most <= largest:
        return _cause(seen, f"it makes {float(seen.ours[bad][0])} where FP64 makes {most:.4g}")
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
    return where if isinstance(where, Where) else place_of(node)


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
