"""The error of every tensor of a step against FP64, and the node that causes the error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf, isfinite, log2

import torch

from mpcompile.numerics.eager_autocast import Key, autocast_values, gradient_key, keys_of
from mpcompile.numerics.lockstep import Moment, Seen, lockstep, moment
from mpcompile.numerics.naming import kept_in_full, made_by
from mpcompile.plan.dataflow import Where
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, source_position
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import BACKWARD, WHERE
from mpcompile.step.graph import results
from mpcompile.train.train_step import TrainStep

TOLERANCE = 0.25
"""The default for the largest relative error of a tensor."""
_ROUNDING = 2.0**13
"""The ratio of a rounding error in FP16 to one in FP32."""
_CAUTION = 2.0
_SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True, slots=True)
class NodeError:
    """The errors of one tensor of a step against FP64.

    An error is the root mean square of the difference, divided by the root mean square of the exact
    tensor. It is infinite if a number is not finite that is finite in FP64.

    Attributes:
        id: the node of the step.
        op: the op that makes the tensor, or the name of an input's slot.
        reads: ids of the float tensors that the op reads.
        keep: ops of the plan that must be in FP32 to mend the tensor, see
            `mpcompile.numerics.naming`.
        stage: ``forward`` or ``backward``.
        type: dtype and shape, such as ``f16[8,32]``.
        where: the source position in the user's program.
        error: the error of the step's tensor.
        own: the error that this node adds to the errors of its inputs.
        full: the error of the same tensor in FP32.
        autocast: the error of the same tensor under eager autocast; None if autocast has none.
        headroom_bits: powers of two between the largest magnitude and 65504; None if all are zero.
        zeros: share of the numbers that are zero.
        vanished: share of the numbers that are zero, but not in FP64.
        subnormals: share of the numbers that FP16 stores with fewer digits.
        nonfinite: count of the numbers that are not finite, but finite in FP64.
    """

    id: str
    op: str
    reads: tuple[str, ...]
    keep: tuple[str, ...]
    stage: str
    type: str
    where: Where
    error: float
    own: float
    full: float
    autocast: float | None
    headroom_bits: float | None
    zeros: float
    vanished: float
    subnormals: float
    nonfinite: int

    @property
    def explained(self) -> float:
        """The error that rounding to 16 bits alone can cause here.

        The program itself may enlarge errors, for example when large terms cancel. It then enlarges
        the errors of FP32 too, which are 2**13 times smaller.
        """
        return explained_by(self.full)

    def fails(self, tolerance: float) -> bool:
        """Whether the error is over the tolerance, and not explained by rounding alone."""
        return self.nonfinite > 0 or self.error > max(tolerance, self.explained)


def check(
    step: TrainStep, *batch: torch.Tensor, autocast: Forward | None = None
) -> list[NodeError]:
    """Compare forward and backward of a step with FP64, node by node, in order.

    The step, its random state and its compiled code do not change.

    Args:
        step: a compiled step; it is read, not run.
        batch: as for a step.
        autocast: the program's forward graph in FP32, to compare eager autocast too.
    """
    return errors_in(moment(step, *batch), autocast)


def errors_in(now: Moment, autocast: Forward | None = None) -> list[NodeError]:
    """Do what `check` does for given inputs of a gradient graph."""
    keys = _keys(now) if autocast is not None else {}
    peer = autocast_values(autocast, now, keys.values()) if autocast is not None else {}
    return [_row(seen, peer.get(keys.get(seen.node.name, _NO_KEY))) for seen in lockstep(now)]


def worst(rows: list[NodeError], others: list[NodeError]) -> list[NodeError]:
    """Return, node by node, the worse errors of two batches of one step."""
    return [_worse(a, b) for a, b in zip(rows, others, strict=True)]


def _worse(a: NodeError, b: NodeError) -> NodeError:
    peers = [item for item in (a.autocast, b.autocast) if item is not None]
    rooms = [item for item in (a.headroom_bits, b.headroom_bits) if item is not None]
    return replace(
        a,
        error=max(a.error, b.error),
        own=max(a.own, b.own),
        full=max(a.full, b.full),
        autocast=max(peers, default=None),
        headroom_bits=min(rooms, default=None),
        zeros=max(a.zeros, b.zeros),
        vanished=max(a.vanished, b.vanished),
        subnormals=max(a.subnormals, b.subnormals),
        nonfinite=max(a.nonfinite, b.nonfinite),
    )


_NO_KEY = Key("", False, "", 0, 0)


def _keys(now: Moment) -> dict[str, Key]:
    found = {node.name: key for node, key in keys_of(now.step.gradient.graph).items()}
    for name, node in results(now.step.gradient.graph).items():
        if name.startswith("grad."):
            found.setdefault(node.name, gradient_key(name.removeprefix("grad.")))
    return found


def _row(seen: Seen, peer: torch.Tensor | None) -> NodeError:
    node, ours = seen.node, seen.ours
    magnitudes = ours.detach().abs().float()
    finite = magnitudes.isfinite()
    largest = float(magnitudes.where(finite, 0.0).max()) if ours.numel() else 0.0
    count = max(ours.numel(), 1)
    bad = int((~finite & seen.exact.isfinite()).sum())
    small = (magnitudes > 0) & (magnitudes < _SMALLEST_NORMAL)
    fits = peer is not None and peer.shape == seen.exact.shape
    return NodeError(
        id=node.name,
        op=made_by(node),
        reads=tuple(name for name, _ in seen.reads),
        keep=kept_in_full(node),
        stage="backward" if node in BACKWARD else "forward",
        type=type_text(ours),
        where=WHERE.get(node) or source_position(node),
        error=inf if bad else relative_error(ours, seen.exact),
        own=relative_error(ours, seen.own),
        full=relative_error(seen.full, seen.exact),
        autocast=relative_error(peer, seen.exact) if peer is not None and fits else None,
        headroom_bits=log2(Precision.FP16.largest / largest) if largest else None,
        zeros=int((magnitudes == 0).sum()) / count,
        vanished=int(((magnitudes == 0) & (seen.exact != 0)).sum()) / count,
        subnormals=int(small.sum()) / count,
        nonfinite=bad,
    )


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root mean square of a difference, divided by that of the exact tensor.

    Numbers that are not finite in FP64 do not count. If the exact tensor is zero, the error is 0
    for a tensor of zeros, and infinite for any other tensor.
    """
    wrong, size = (value.detach().to(exact.dtype) - exact).norm(), exact.norm()
    if not bool(size.isfinite()):
        counted = exact.isfinite()
        wrong = (value.detach().to(exact.dtype) - exact).where(counted, 0.0).norm()
        size = exact.where(counted, 0.0).norm()
    if not wrong:
        return 0.0
    ratio = float(wrong / size) if size else inf
    return ratio if isfinite(ratio) else inf


def explained_by(full: float) -> float:
    """Return the error that rounding to 16 bits can cause if the error of FP32 is ``full``."""
    return _CAUTION * _ROUNDING * full


def first_failure(rows: list[NodeError], tolerance: float) -> NodeError | None:
    """Return the first node over a tolerance, in execution order."""
    return next(failures(rows, tolerance), None)


def ancestors(rows: list[NodeError], ids: Iterable[str]) -> set[str]:
    """Return the ids of nodes and of all nodes that they are computed from."""
    by_id = {item.id: item for item in rows}
    waiting = [name for name in ids if name in by_id]
    found = set(waiting)
    while waiting:
        more = [name for name in by_id[waiting.pop()].reads if name not in found]
        found.update(more)
        waiting += more
    return found


def origin(rows: list[NodeError], row: NodeError) -> NodeError:
    """Return the node that adds most to a node's error: the node itself or one before it."""
    found = ancestors(rows, [row.id])
    # The first of equal nodes, because the later ones may only repeat its error.
    return max((item for item in rows if item.id in found), key=_own)


def _own(row: NodeError) -> float:
    return row.own


def failures(rows: list[NodeError], tolerance: float) -> Iterator[NodeError]:
    """Yield the nodes over a tolerance, in execution order."""
    return (row for row in rows if row.fails(tolerance))
