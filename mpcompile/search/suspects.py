"""The most suspicious ops of a plan, measured by the errors of a step's tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf

import torch

from mpcompile.numerics.lockstep import Seen, lockstep, moment
from mpcompile.numerics.node_errors import relative_error
from mpcompile.numerics.warm_up import Batches, settled_step
from mpcompile.precision import Precision
from mpcompile.program.marks import BACKWARD, PLANNED, SLOT
from mpcompile.search.trial_log import Suspect
from mpcompile.step.transformed import Transformed
from mpcompile.torch_private.ops import is_higher_order

_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""The largest relative error of one rounding, by dtype."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The evidence of one tensor of a step, in one batch, against its ops."""

    made_by: AbstractSet[str]
    read_by: AbstractSet[str]
    error: float
    own: float
    vanished: float
    against: float
    misfit: float


def suspects(
    made: Transformed, ops: AbstractSet[str], batches: Batches, steps: int
) -> list[Suspect]:
    """Measure ops, forward and backward, and return them with the most suspicious first.

    The suspicion of an op is the sum of two measures. The first is over the tensors that the op
    makes: the error that it adds itself beyond one rounding, plus the share of numbers that are
    zero but not in FP64. It depends on the ops before: after an infinity it tells nothing about the
    ops that read it. So the second is over the forward tensors that the op makes or reads: how
    badly the 16-bit dtype represents their FP64 values. Each measure takes the worst tensor of each
    batch, and the batches are summed. Equally suspicious ops stay in the order of the graph.

    Args:
        made: transformed without the passes that join and reshape matmuls, so that every node of
            the step belongs to one op of the plan; its model is changed.
        ops: ids of ops.
        batches: the batches to train on, then the batches to measure.
        steps: the number of batches to train on.
    """
    step, _ = settled_step(made, batches, steps)
    blame = _Blame(made)
    suspicion = dict.fromkeys(ops, 0.0)
    worst = {op: Suspect(op=op, suspicion=0, error=0, own=0, vanished=0) for op in ops}
    for batch in batches[steps:]:
        against, misfit = dict.fromkeys(ops, 0.0), dict.fromkeys(ops, 0.0)
        for seen in lockstep(moment(step, *batch)):
            tensor = blame.tensor(seen)
            for op in tensor.made_by & ops:
                against[op] = max(against[op], tensor.against)
                worst[op] = _worse(worst[op], tensor)
            for op in (tensor.made_by | tensor.read_by) & ops:
                misfit[op] = max(misfit[op], tensor.misfit)
        for op in ops:
            suspicion[op] += against[op] + misfit[op]
    found = [
        worst[op.id].model_copy(update={"suspicion": suspicion[op.id]})
        for op in made.flow.ops
        if op.id in ops
    ]
    return sorted(found, key=lambda item: -item.suspicion)


def _worse(suspect: Suspect, tensor: _Tensor) -> Suspect:
    return suspect.model_copy(
        update={
            "error": max(suspect.error, tensor.error),
            "own": max(suspect.own, tensor.own),
            "vanished": max(suspect.vanished, tensor.vanished),
        }
    )


class _Blame:
    """The map from a node of a step to the ops that it belongs to."""

    def __init__(self, made: Transformed) -> None:
        assert made.step is not None
        narrow = made.plan.precision
        # Without a 16-bit dtype no op is suspicious.
        self._format = None if narrow is Precision.FP32 else getattr(torch, narrow.value)
        readers: Mapping[str, set[str]] = defaultdict(set)
        makers = {tensor: {op.id} for op in made.flow.ops for tensor in op.writes}
        for op in made.flow.ops:
            for tensor in op.reads:
                readers[tensor].add(op.id)
        self._makers: dict[str, set[str]] = {**makers, **{o.id: {o.id} for o in made.flow.ops}}
        self._readers = {
            **{op.id: {r for t in op.writes for r in readers[t]} for op in made.flow.ops},
            **{item.name: readers[item.node] for item in made.forward.inputs},
        }
        inputs = {item.node: f"{item.name}.working" for item in made.forward.inputs}
        for cast in made.plan.casts:
            # A cast belongs to the ops that read it, and to the op whose result it rounds.
            self._makers[cast.id] = {*cast.readers, *makers.get(cast.tensor, ())}
            if cast.tensor in inputs:
                self._makers.setdefault(inputs[cast.tensor], set()).update(cast.readers)
        # A loop is one node of a step; its inner ops have a dot or a slash in their ids.
        self._inner = {op.id for op in made.flow.ops if "." in op.id or "/" in op.id}

    def tensor(self, seen: Seen) -> _Tensor:
        """Return the evidence of a tensor, and the ops that it concerns."""
        node = seen.node
        key = str(SLOT.get(node) or PLANNED.get(node, ""))
        calls = any(map(is_higher_order, (node, *node.all_input_nodes)))
        makers = self._makers.get(key, self._inner if calls else set())
        bad = bool((~seen.ours.isfinite() & seen.exact.isfinite()).any())
        own = relative_error(seen.ours, seen.own)
        vanished = _share(seen.ours, seen.exact)
        backward = node in BACKWARD
        return _Tensor(
            made_by=makers,
            read_by=set() if backward else self._readers.get(key, set()),
            error=inf if bad else relative_error(seen.ours, seen.exact),
            own=own,
            vanished=vanished,
            against=max(own - _ROUNDING.get(seen.ours.dtype, 0.0), 0.0) + vanished,
            # Backward's numbers depend on a loss scale that may not have settled.
            misfit=0.0 if backward else self._misfit(seen.exact),
        )

    def _misfit(self, exact: torch.Tensor) -> float:
        if self._format is None:
            return 0.0
        rounded = exact.to(self._format)
        error = relative_error(rounded, exact) - _ROUNDING[self._format]
        return max(error, 0.0) + _share(rounded, exact)


def _share(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the share of numbers that are zero but not in FP64."""
    return int(((value == 0) & (exact != 0)).sum()) / max(exact.numel(), 1)
