"""The differences between two plans, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpcompile.plan.fingerprint import differences
from mpcompile.plan.plan import Cast, Decision, Plan


@dataclass(frozen=True, slots=True)
class Change:
    """An op that two plans decide differently; None if a plan has no decision about it."""

    op: str
    old: Decision | None
    new: Decision | None


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """The differences between two plans; other reasons or source lines alone do not count.

    Attributes:
        graph: the differences between the graphs of the plans, in words.
        precision: the 16-bit formats of both, if they differ.
        decisions: the ops that are decided differently, in graph order.
        added: casts that only the second has.
        removed: casts that only the first has.
        rewired: casts in both plans with other readers or another source: first and second.
        cost: bytes by the planner's model, first and second.
        cast_bytes: bytes moved if no cast is fused, first and second.
    """

    graph: tuple[str, ...]
    precision: tuple[str, str] | None
    decisions: tuple[Change, ...]
    added: tuple[Cast, ...]
    removed: tuple[Cast, ...]
    rewired: tuple[tuple[Cast, Cast], ...]
    cost: tuple[int, int]
    cast_bytes: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether both plans do the same to the same graph."""
        changed = self.graph or self.precision or self.decisions
        return not (changed or self.added or self.removed or self.rewired)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary ready for JSON, except precisions, whose value is their name."""
        return {"same": self.same, **asdict(self)}


def plan_diff(old: Plan, new: Plan, old_name: str = "a", new_name: str = "b") -> PlanDiff:
    """Compare two plans.

    Args:
        old: the first.
        new: the second.
        old_name: what the words call the first.
        new_name: what the words call the second.
    """
    before, after = ({d.op: d for d in plan.decisions} for plan in (old, new))
    first, second = ({cast.id: cast for cast in plan.casts} for plan in (old, new))
    return PlanDiff(
        graph=differences(old.graph, new.graph, old_name, new_name),
        precision=(old.precision.short, new.precision.short)
        if old.precision is not new.precision
        else None,
        decisions=tuple(
            Change(op, before.get(op), after.get(op))
            for op in {**before, **after}
            if _decided(before.get(op)) != _decided(after.get(op))
        ),
        added=tuple(cast for id, cast in second.items() if id not in first),
        removed=tuple(cast for id, cast in first.items() if id not in second),
        rewired=tuple(
            (cast, second[id])
            for id, cast in first.items()
            if id in second and _wired(cast) != _wired(second[id])
        ),
        cost=(old.cost, new.cost),
        cast_bytes=(sum(c.bytes for c in old.casts), sum(c.bytes for c in new.casts)),
    )


def _decided(decision: Decision | None) -> tuple[object, ...]:
    return () if decision is None else (decision.kind, decision.computes, decision.stores)


def _wired(cast: Cast) -> tuple[object, ...]:
    return cast.tensor, cast.source, cast.to, cast.readers


def in_words(diff: PlanDiff) -> list[str]:
    """Return one line per difference, or one line that says that there is none."""
    if diff.same:
        return ["the plans are the same"]
    lines = [f"graph: {sentence}" for sentence in diff.graph]
    if diff.precision:
        lines.append(f"precision: {_arrow(*diff.precision)}")
    lines += [_change(change) for change in diff.decisions]
    lines += [f"cast removed: {_cast(cast)}" for cast in diff.removed]
    lines += [f"cast added: {_cast(cast)}" for cast in diff.added]
    lines += [_rewired(*casts) for casts in diff.rewired]
    lines.append(f"bytes written: {_numbers(*diff.cost)}")
    lines.append(f"bytes of casts, if none is fused: {_numbers(*diff.cast_bytes)}")
    return lines


def _change(change: Change) -> str:
    old, new = change.old, change.new
    if new is None:
        return f"{change.op}: no longer decided"
    position = f" ({new.where})" if str(new.where) else ""
    if old is None:
        return f"{change.op}{position}: new, {_state(new)}, because {new.reason}"
    before = f" (before: {old.reason})" if old.reason not in new.reason else ""
    return f"{change.op}{position}: {_between(old, new)}, because {new.reason}{before}"


def _between(old: Decision, new: Decision) -> str:
    """Return ``f16 -> f32``, or all precisions if only those of the arithmetic differ."""
    if old.kind != new.kind:
        return f"{old.kind} {_state(old)} -> {new.kind} {_state(new)}"
    if old.stores is new.stores:
        return f"{_state(old)} -> {_state(new)}"
    return _arrow(old.stores.short, new.stores.short)


def _state(decision: Decision) -> str:
    if decision.computes is decision.stores:
        return decision.stores.short
    return f"computed in {decision.computes.short}, stored in {decision.stores.short}"


def _cast(cast: Cast) -> str:
    return (
        f"{cast.tensor} to {cast.to.short}, {cast.elements:,} numbers, for "
        f"{', '.join(cast.readers) or 'no reader'} ({cast.reason})"
    )


def _rewired(old: Cast, new: Cast) -> str:
    gone = [reader for reader in old.readers if reader not in new.readers]
    come = [reader for reader in new.readers if reader not in old.readers]
    parts = [
        f"made from {_arrow(old.source, new.source)}" if old.source != new.source else "",
        f"now also for {', '.join(come)}" if come else "",
        f"no longer for {', '.join(gone)}" if gone else "",
    ]
    said = "; ".join(part for part in parts if part) or "its readers are in another order"
    return f"cast {new.tensor} to {new.to.short}: {said}"


def _arrow(old: str, new: str) -> str:
    return f"{old} -> {new}"


def _numbers(old: int, new: int) -> str:
    if old == new:
        return f"{old:,} as before"
    percent = f" ({(new - old) / old:+.1%})" if old else ""
    return f"{old:,} -> {new:,}{percent}"
