"""Overrides that could mend a step, each tried before it is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch

from mpcompile.errors import CompileError
from mpcompile.numerics.node_errors import NodeError, ancestors, origin
from mpcompile.pipeline import transform
from mpcompile.precision import Precision
from mpcompile.program.batch import Batch
from mpcompile.program.workload import Workload
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slices import is_absent
from mpcompile.step.transformed import Choices, Transformed

TRIALS = 4
"""The most overrides that are tried one by one for a failure; each makes the step again."""
_FACTOR = 2.0**8
"""How much smaller or larger another loss scale is."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """An override of a step.

    Attributes:
        full: patterns of what it keeps in FP32, such as ``node:matmul`` or a module path.
        scale: a static loss scale, or None.
    """

    full: tuple[str, ...] = ()
    scale: float | None = None

    @property
    def flags(self) -> str:
        """The words of a command line."""
        words = [f"--full {name}" for name in self.full]
        return " ".join([*words, *([f"--loss-scale {self.scale:g}"] if self.scale else [])])

    @property
    def arguments(self) -> str:
        """The arguments of `mpcompile.compile`."""
        if self.scale:
            return f"loss_scale=LossScale.static({self.scale:g})"
        named = ", ".join(f'"{name}"' for name in self.full)
        return f"policy=Policy(full=({named}{',' if len(self.full) == 1 else ''}))"

    @staticmethod
    def of_ops(ops: Iterable[str]) -> Remedy:
        """Return the override that keeps ops of the plan in FP32."""
        return Remedy(tuple(f"node:{name}" for name in ops))

    def applied(self, choices: Choices) -> Choices:
        """Return choices with the override; the captured graph is not proved again."""
        full = (*choices.policy.full, *self.full)
        scale = LossScale.static(self.scale) if self.scale else choices.loss_scale
        return replace(
            choices, policy=replace(choices.policy, full=full), loss_scale=scale, verify=False
        )


def remedies_for(rows: list[NodeError], first: NodeError, scale: float | None) -> Iterator[Remedy]:
    """Yield what could mend a step, the most likely first.

    Args:
        rows: the errors of all its tensors.
        first: the first tensor that is wrong.
        scale: the loss scale, or None if it cannot be chosen.
    """
    before = ancestors(rows, [first.id])
    suspects = [row for row in rows if row.id in before]
    likely = [origin(rows, first), first]
    if first.nonfinite:
        # A number that was rounded to zero makes a division infinite; the last one is the nearest.
        lost = [row for row in suspects if row.vanished and row is not first]
        likely = [first, *lost[-1:], likely[0]]
    for row in [*likely, *sorted(suspects, key=_own, reverse=True)]:
        if row.keep:
            yield Remedy.of_ops(row.keep)
        if scale and row.stage == "backward" and (row.nonfinite or row.vanished):
            yield Remedy(scale=scale / _FACTOR if row.nonfinite else scale * _FACTOR)


def _own(row: NodeError) -> float:
    return row.own


def module_of(rows: list[NodeError], first: NodeError) -> str:
    """Return the module of a tensor; of a weight, the module that reads it."""
    reads = (row.where.module for row in rows if set(row.keep) & set(first.keep))
    return first.where.module or next((module for module in reads if module), "")


def tried(
    transformed: Transformed,
    remedies: Iterable[Remedy],
    holds: Callable[[Transformed], bool],
    module: str = "",
    batch: tuple[Any, ...] | None = None,
) -> Remedy | None:
    """Make the step again with one override after the other; return the first that helps.

    If none does, the first two are tried together, then the first three: an epsilon that its reader
    would round to zero again needs two. The last are whole modules.

    Nothing of the user's is changed. Decisions of a given plan count before overrides, and weights
    in slices have no values, so nothing is tried then.

    Args:
        transformed: the step that fails.
        remedies: the overrides; `TRIALS` of them are tried at most.
        holds: whether a step does not fail.
        module: the path of a module; it and the one around it are tried last.
        batch: the arguments of the step that fails; default: the workload's batch.
    """
    if not can_try(transformed):
        return None
    choices = transformed.choices
    workload = transformed.workload if batch is None else with_batch(transformed.workload, batch)
    single = list(islice(_once(remedies), TRIALS))
    ops = [remedy.full for remedy in single if remedy.full]
    joined = [Remedy(tuple(dict.fromkeys(chain(*ops[:k])))) for k in range(2, len(ops) + 1)]
    around = [name for name in (module, module.rpartition(".")[0]) if name]
    modules = [Remedy((f"module:{name}",)) for name in around]
    for remedy in dict.fromkeys([*single, *joined, *modules]):
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                if holds(transform(workload, remedy.applied(choices))):
                    return remedy
            except (CompileError, RuntimeError):  # the override contradicts another; no memory
                continue
    return None


def with_batch(workload: Workload, arguments: tuple[Any, ...]) -> Workload:
    """Return a workload whose example batch is the arguments of a call of a step."""
    given = arguments[0] if len(arguments) == 1 else arguments
    return replace(workload, batch=given if isinstance(given, Batch) else arguments)


def _once(remedies: Iterable[Remedy]) -> Iterator[Remedy]:
    seen = set[Remedy]()
    for remedy in remedies:
        if remedy not in seen:
            seen.add(remedy)
            yield remedy


def can_try(transformed: Transformed) -> bool:
    """Whether overrides of a step count, and can be tried."""
    weights = transformed.workload.model.parameters()
    return transformed.choices.plan is None and not any(map(is_absent, weights))


def has_loss_scale(transformed: Transformed) -> bool:
    """Whether a step has a loss scale that its user can choose."""
    narrow = transformed.plan.precision is Precision.FP16
    return narrow and transformed.choices.scale.active
