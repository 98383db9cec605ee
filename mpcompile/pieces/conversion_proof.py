"""Proof, at a graph's first call, that our form of a graph of Dynamo computes what the graph does.

Dynamo captures the program, so the capture is PyTorch's. Ours is what comes after it: the graph is
traced into composite ops without writes, and switches of the grad mode become detached tensors.
Both forms run once in FP32 on the inputs of the call, with the same random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcompile.program.random_state import RandomState, drawn_again, random_state

TOLERANCE = 1e-4
"""The difference that two FP32 results may have, as a part of a tensor's 2-norm."""
NOISE = 1e-6
"""The difference that a gradient may have, as a part of the largest gradient's 2-norm."""

_LOG = logging.getLogger("mpcompile")
_Run = Callable[..., Sequence[Any]]


class Proven:
    """A compiled graph that is compared at its first call, and left to PyTorch if it is wrong.

    Args:
        made: the compiled graph.
        plain: the same graph in FP32, without casts.
        dynamo: Dynamo's graph.
    """

    def __init__(self, made: _Run, plain: _Run, dynamo: _Run) -> None:
        self._run, self._dynamo = made, dynamo
        self._plain: _Run | None = plain

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        plain, self._plain = self._plain, None
        if plain is not None and (what := difference(self._dynamo, plain, inputs)):
            self._run = self._dynamo
            _LOG.warning(
                "a graph stays in FP32, because its form without writes is not faithful: %s "
                "differs; write a new tensor instead of writing under torch.no_grad() or by .data",
                what,
            )
        return self._run(*inputs)


def difference(one: _Run, other: _Run, inputs: Sequence[Any]) -> str:
    """Return what differs between two forms of a graph, "" if nothing does or one cannot run."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    state = random_state(tensors[0].device if tensors else torch.device("cpu"))
    try:
        mine, theirs = (_outcome(run, inputs, state) for run in (one, other))
    except RuntimeError as error:  # such as a device without the memory for it
        _LOG.info("a graph was not compared with Dynamo's: %s", error)
        return ""
    for what in ("values", "gradients"):
        pairs = list(zip(getattr(mine, what), getattr(theirs, what), strict=True))
        sizes = [float(value.double().norm()) for value, _ in pairs if value is not None]
        largest = max((size for size in sizes if size < float("inf")), default=0.0)
        for position, (first, second) in enumerate(pairs):
            if not _alike(first, second, NOISE * largest if what == "gradients" else 0.0):
                return f"{'a result' if what == 'values' else 'a gradient'} ({position})"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    values: list[torch.Tensor | None]
    gradients: list[torch.Tensor | None]


def _outcome(run: _Run, inputs: Sequence[Any], state: RandomState) -> _Outcome:
    leaves, given = [], []
    for value in inputs:
        if isinstance(value, torch.Tensor):
            # A graph that writes to a parameter is never rewritten, so its values need no copy.
            copied = value.detach()
            if not isinstance(value, torch.nn.Parameter):
                copied = copied.clone()
            if value.requires_grad:
                leaves.append(copied.requires_grad_())
                copied = copied if isinstance(value, torch.nn.Parameter) else copied.clone()
            given.append(copied)
        else:
            given.append(value)
    with drawn_again(state):
        made = [value for value in run(*given) if isinstance(value, torch.Tensor)]
    after = [value for value in given if isinstance(value, torch.Tensor)]
    ends = [value for value in made if value.requires_grad]
    gradients: Sequence[torch.Tensor | None] = []
    if ends and leaves:
        seeds = [value.detach() + 1 for value in ends]
        gradients = torch.autograd.grad(ends, leaves, seeds, allow_unused=True)
    elif leaves:
        gradients = [None] * len(leaves)
    return _Outcome([value.detach() for value in (*made, *after)], list(gradients))


def _alike(one: torch.Tensor | None, other: torch.Tensor | None, noise: float) -> bool:
    if one is None or other is None:
        present = one if other is None else other
        return present is None or not bool(present.any())
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    if torch.equal(one, other):
        return True
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    wide = one[finite].double() if not one.is_complex() else one[finite].to(torch.complex128)
    wrong = float((wide - other[finite].to(wide.dtype)).norm())
    return wrong <= max(TOLERANCE * float(wide.norm()), noise)
