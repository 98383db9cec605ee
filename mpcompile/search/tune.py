"""The fewest ops to return to FP32 so that a tolerance or a score holds, found by trials."""

from __future__ import annotations

import copy
import hashlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpcompile.errors import BadInput, CheckFailed
from mpcompile.lower.lower import Backend
from mpcompile.numerics.warm_up import Batches
from mpcompile.passes.order import OPTIONAL
from mpcompile.pipeline import transform
from mpcompile.plan.dataflow import Op, Where
from mpcompile.plan.fingerprint import graph_of
from mpcompile.plan.measured import MeasuredOverflow
from mpcompile.plan.policy import FULL_PRECISION, Policy, Row, UnmatchedOverride, names_node
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.random_state import seed_all
from mpcompile.program.workload import Workload
from mpcompile.search.delta_debugging import smallest_sufficient
from mpcompile.search.judges import Judge, Verdict, score
from mpcompile.search.suspects import suspects
from mpcompile.search.trial_log import Reference, Suspect, Suspects, Trial, TrialLog
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Choices, Transformed

SEED = 0
"""Every trial draws the random numbers that follow from it."""


@dataclass(frozen=True)
class Search:
    """How a workload is transformed where nothing is returned, and what is measured.

    Attributes:
        policy: the user's; overrides that name a node hold in every trial.
        scale: see `mpcompile.compile`.
        ranges: see `mpcompile.compile`.
        without: see `mpcompile.compile`.
        batches: to train on and to measure.
        steps: on how many of them to train before measuring.
    """

    policy: Policy
    scale: LossScale | None
    ranges: Ranges | None
    without: tuple[str, ...]
    batches: Batches
    steps: int


@dataclass(frozen=True)
class Candidates:
    """What could be returned to FP32.

    Attributes:
        ops: the ops of the plan that compute or store 16 bits, in graph order.
        pinned: ids of those that an override names as a node, so that none can say otherwise.
        graph: SHA-256 of the graph's shape.
    """

    ops: tuple[Op, ...]
    pinned: tuple[str, ...]
    graph: str


@dataclass(frozen=True, slots=True)
class Returned:
    """An op that has to be FP32.

    Attributes:
        op: its id, which overrides name as ``node:ID``.
        kind: its name.
        where: its place in the user's program.
        before: how wrong it is in 16 bits where nothing is returned.
        after: the largest error of a tensor of its once all that was found is FP32.
    """

    op: str
    kind: str
    where: Where
    before: Suspect
    after: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found.

    Attributes:
        returned: the ops, in graph order; none if nothing has to be returned.
        before: what was measured with none of them in FP32.
        after: what was measured with all of them in FP32.
        trials: how many sets of ops were tried.
        seconds: what the trials took.
    """

    returned: tuple[Returned, ...]
    before: str
    after: str
    trials: int
    seconds: float


def candidates(workload: Workload, search: Search) -> Candidates:
    """Plan a workload and return which ops could be returned.

    Raises:
        BadInput, CannotCapture: see `mpcompile.compile`; or the workload has no loss.
    """
    if workload.loss is None:
        raise BadInput(
            "the workload has no loss and no optimizer", workload.origin, "add both to train it"
        )
    made = _transformed(workload, search, ())
    narrow = {d.op for d in made.plan.decisions if {d.computes, d.stores} != {Precision.FP32}}
    ops = [op for op in made.flow.ops if op.id in narrow]
    pinned = {op.id for op in ops if _pinned(op, search.policy)}
    return Candidates(
        tuple(op for op in ops if op.id not in pinned),
        tuple(op.id for op in ops if op.id in pinned),
        graph_of(made.flow).fingerprint,
    )


def _pinned(op: Op, policy: Policy) -> bool:
    row = Row(op.id, op.kind, op.where.module)
    return any(names_node(pattern, row, op.rule) for pattern in (*policy.half, *policy.free))


def search_in_words(
    workload: Workload, search: Search, found: Candidates, judge: str
) -> dict[str, str]:
    """Return what decides a search's result, each by its name: see `trial_log.Head`."""
    policy = search.policy
    tensors = [*workload.model.parameters(), *workload.model.buffers()]
    return {
        "the program": found.graph,
        "the start (weights and buffers)": _digest(tensors),
        "the data": _digest(tensor for batch in search.batches for tensor in batch),
        "the judge": judge,
        "--steps": str(search.steps),
        "--batches": str(len(search.batches) - search.steps),
        "the level": f"{policy.level.value} {policy.precision.value}",
        **{name: ", ".join(getattr(policy, name)) for name in ("full", "half", "free")},
        "the loss scale": str(search.scale or "by the precision"),
        "--without": ", ".join(sorted(search.without)),
        "--ranges": _sha(search.ranges.to_json().encode()) if search.ranges else "",
        "torch": torch.__version__,
    }


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    held = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in tensors)
    return _sha(b"".join(value.view(torch.uint8).numpy().tobytes() for value in held))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def score_in_full_precision(
    workload: Workload,
    search: Search,
    function: Callable[..., Any],
    backend: Backend | None,
    log: TrialLog,
) -> float:
    """Return what a function says of the workload in FP32, and note it if it is new."""
    if log.reference is None:
        with _seeded_and_quiet():
            reached = score(function, _in_full_precision(workload, search), backend)
        log.note(Reference(score=reached))
        return reached
    return log.reference


def _in_full_precision(workload: Workload, search: Search) -> Transformed:
    return transform(_fresh(workload), Choices(policy=FULL_PRECISION, without=search.without))


def tune(
    workload: Workload,
    search: Search,
    found: Candidates,
    judge: Judge,
    log: TrialLog,
    say: Callable[[str], None],
) -> Tuned:
    """Search, and note every trial before the next one begins.

    Each trial gets a copy of the workload and the same random numbers: those of torch, NumPy and
    Python are seeded.

    Args:
        workload: stays as it is.
        search: how it is transformed.
        found: what can be returned.
        judge: says whether a trial holds.
        log: what is known already, and where the rest goes.
        say: is told of every trial in a sentence.

    Raises:
        CheckFailed: it does not hold even in FP32.
        BadInput: the log is of other ops.
    """
    everything = frozenset(op.id for op in found.ops)

    def holds(ops: frozenset[str]) -> bool:
        return _trial(workload, search, ops, judge, log, say).holds

    if not holds(frozenset()):
        if not holds(everything):
            raise _hopeless(workload, search, found, judge, log.trials[everything])
        if log.suspects is None:
            log.note(Suspects(suspects=tuple(_suspects(workload, search, (), everything))))
        order = log.suspects or ()
        if {item.op for item in order} != everything or len(order) != len(everything):
            raise BadInput(
                "the suspects are not the ops of this program",
                str(log.path),
                "start again with --force and without --resume",
            )
        chosen = set(smallest_sufficient([item.op for item in order], holds))
    else:
        order, chosen = (), set()
    before = {item.op: item for item in order}
    after = {item.op: item.error for item in _suspects(workload, search, chosen, chosen)}
    return Tuned(
        tuple(
            Returned(op.id, op.kind, op.where, before[op.id], after[op.id])
            for op in found.ops
            if op.id in chosen
        ),
        log.trials[frozenset()].why,
        log.trials[frozenset(chosen)].why,
        len(log.trials),
        sum(trial.seconds for trial in log.trials.values()),
    )


def _trial(
    workload: Workload,
    search: Search,
    ops: frozenset[str],
    judge: Judge,
    log: TrialLog,
    say: Callable[[str], None],
) -> Trial:
    if ops not in log.trials:
        start = time.perf_counter()
        with _seeded_and_quiet():
            verdict = judge(_transformed(workload, search, ops))
        seconds = round(time.perf_counter() - start, 3)
        made = Trial(full=tuple(sorted(ops)), holds=verdict.holds, why=verdict.why, seconds=seconds)
        log.note(made)
        word = "holds" if made.holds else "fails"
        say(f"trial {len(log.trials)}: {len(ops)} more in FP32: {word}, {made.why}")
    return log.trials[ops]


def _hopeless(
    workload: Workload, search: Search, found: Candidates, judge: Judge, last: Trial
) -> CheckFailed:
    with _seeded_and_quiet():
        verdict: Verdict = judge(_in_full_precision(workload, search))
    if not verdict.holds or not found.pinned:
        why = last.why if verdict.holds else verdict.why
        return CheckFailed(
            f"it does not hold in FP32 either: {why}",
            workload.origin,
            "it is the program, not its precision; ask for less, or mend the program",
        )
    return CheckFailed(
        f"it does not hold with all other {len(found.ops)} ops in FP32: {last.why}",
        workload.origin,
        f"remove the overrides that name nodes: {', '.join(found.pinned)}",
    )


def _suspects(
    workload: Workload, search: Search, full: Collection[str], ops: Collection[str]
) -> list[Suspect]:
    """Measure ops where some are FP32, each node by itself."""
    if not ops:
        return []
    with _seeded_and_quiet():
        made = _transformed(workload, replace(search, without=OPTIONAL), full)
        return suspects(made, set(ops), search.batches, search.steps)


def _transformed(workload: Workload, search: Search, full: Collection[str]) -> Transformed:
    more = tuple(f"node:{op}" for op in sorted(full))
    policy = replace(search.policy, full=(*search.policy.full, *more))
    return transform(
        _fresh(workload),
        Choices(
            policy=policy, loss_scale=search.scale, ranges=search.ranges, without=search.without
        ),
    )


def _fresh(workload: Workload) -> Workload:
    """Return a copy with a model, an optimizer and a loss of its own."""
    try:
        model, optimizer, loss = copy.deepcopy((workload.model, workload.optimizer, workload.loss))
    except Exception as error:
        raise BadInput(
            f"the model cannot be copied ({type(error).__name__}: {error})",
            workload.origin,
            "make copy.deepcopy((model, optimizer, loss)) work",
        ) from error
    return replace(workload, model=model, optimizer=optimizer, loss=loss)


@contextmanager
def _seeded_and_quiet() -> Iterator[None]:
    """Draw the same random numbers as ever; the user was warned when the program was planned."""
    seed_all(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmatchedOverride)
        warnings.simplefilter("ignore", MeasuredOverflow)
        yield
