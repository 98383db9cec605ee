"""The pass interface: a pass is a callable that rewrites in place and returns its changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias, TypeVar

G = TypeVar("G")
Pass: TypeAlias = Callable[[G], int]


def pass_name(rewrite: object) -> str:
    """Return ``scale_loss`` for a function of that name or for an instance of ``ScaleLoss``."""
    name = getattr(rewrite, "__name__", type(rewrite).__name__)
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def about(name: str) -> str:
    """Return the docstring of the module of a pass that has run."""
    modules = (
        module
        for path, module in sys.modules.items()
        if path.startswith(f"{__package__}.") and path.endswith(f".{name}")
    )
    return next(modules).__doc__ or ""


def run_passes(
    graph: G,
    passes: Sequence[Pass[G]],
    check: Callable[[G], None],
    mark: Callable[[G, str], None] | None = None,
    between: Callable[[G, Collection[str]], None] | None = None,
) -> dict[str, int]:
    """Run passes in order and return how many changes each made.

    Args:
        graph: rewritten in place.
        passes: the order.
        check: raises on an invalid graph; called once, after the last pass.
        mark: notes on each new node which pass has made it; called after each pass with its name,
            and once before the first pass with no name.
        between: raises if a fact that the next pass relies on is not true; called after each pass
            with the names of the passes so far. Tests: `mpcompile.passes.invariants.check_after`.
    """
    changes: dict[str, int] = {}
    if mark is not None:
        mark(graph, "")
    for rewrite in passes:
        name = pass_name(rewrite)
        try:
            made = rewrite(graph)
            if between is not None:
                between(graph, [*changes, name])
        except Exception as error:
            error.add_note(f"while {name} rewrote the graph; finished before: {list(changes)}")
            raise
        changes[name] = changes.get(name, 0) + made
        if mark is not None and made:
            mark(graph, name)
    if any(changes.values()):
        check(graph)
    return changes
