"""Overrides that could mend a step, each tried before it is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from mpcompile.errors import CompileError
from mpcompile.numerics.node_errors import NodeError
from mpcompile.pipeline import transform
from mpcompile.precision import Precision
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slices import is_absent
from mpcompile.step.transformed import Choices, Transformed

TRIALS = 4
"""The most overrides that are tried for one failure; each makes the step again."""
_FACTOR = 2.0**8
"""How much smaller or larger another loss scale is."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """An override of a step.

    Attributes:
        full: ops of the plan that it keeps in FP32.
        scale: a static loss scale, or None.
    """

    full: tuple[str, ...] = ()
    scale: float | None = None

    @property
    def flags(self) -> str:
        """The words of a command line."""
        words = [f"--full node:{name}" for name in self.full]
        return " ".join([*words, *([f"--loss-scale {self.scale:g}"] if self.scale else [])])

    @property
    def arguments(self) -> str:
        """The arguments of `mpcompile.compile`."""
        if self.scale:
            return f"loss_scale=LossScale.static({self.scale:g})"
        named = ", ".join(f'"node:{name}"' for name in self.full)
        return f"policy=Policy(full=({named}{',' if len(self.full) == 1 else ''}))"

    def applied(self, choices: Choices) -> Choices:
        """Return choices with the override; the captured graph is not proved again."""
        full = (*choices.policy.full, *(f"node:{name}" for name in self.full))
        scale = LossScale.static(self.scale) if self.scale else choices.loss_scale
        return replace(
            choices, policy=replace(choices.policy, full=full), loss_scale=scale, verify=False
        )


def remedies_for(rows: Iterable[NodeError], scale: float | None) -> Iterator[Remedy]:
    """Yield what could mend tensors, the most likely first.

    Args:
        rows: the tensors that are wrong, the one to blame first.
        scale: the loss scale, or None if it cannot be chosen.
    """
    for row in rows:
        if row.keep:
            yield Remedy(row.keep)
        if scale and row.stage == "backward" and (row.nonfinite or row.vanished):
            yield Remedy(scale=scale / _FACTOR if row.nonfinite else scale * _FACTOR)


def tried(
    transformed: Transformed,
    remedies: Iterable[Remedy],
    holds: Callable[[Transformed], bool],
    batch: tuple[torch.Tensor, ...] | None = None,
) -> Remedy | None:
    """Make the step again with one override after the other; return the first that helps.

    Nothing of the user's is changed. Decisions of a given plan count before overrides, and weights
    in slices have no values, so nothing is tried then.

    Args:
        transformed: the step that fails.
        remedies: the overrides; `TRIALS` of them are tried at most.
        holds: whether a step does not fail.
        batch: the batch with which it fails; default: the workload's.
    """
    if not can_try(transformed):
        return None
    workload, choices = transformed.workload, transformed.choices
    if batch is not None:
        workload = replace(workload, batch=batch)
    for remedy in list(dict.fromkeys(remedies))[:TRIALS]:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                if holds(transform(workload, remedy.applied(choices))):
                    return remedy
            except (CompileError, RuntimeError):  # the override contradicts another; no memory
                continue
    return None


def can_try(transformed: Transformed) -> bool:
    """Whether overrides of a step count, and can be tried."""
    weights = transformed.workload.model.parameters()
    return transformed.choices.plan is None and not any(map(is_absent, weights))


def has_loss_scale(transformed: Transformed) -> bool:
    """Whether a step has a loss scale that its user can choose."""
    narrow = transformed.plan.precision is Precision.FP16
    return narrow and transformed.choices.scale.active
