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

from mpcompile.errors import BadInput, CheckFailed, SideEffect
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
"""The seed of the random numbers of every trial."""


@dataclass(frozen=True)
class Search:
    """The options of a search: how to transform the workload, and the batches.

    Attributes:
        policy: the user's policy; overrides that name a node hold in every trial.
        scale: see `mpcompile.compile`.
        ranges: see `mpcompile.compile`.
        without: see `mpcompile.compile`.
        batches: the batches to train on, then the batches to measure.
        steps: the number of batches to train on.
        verify: whether the captured program is compared with the program itself, once.
    """

    policy: Policy
    scale: LossScale | None
    ranges: Ranges | None
    without: tuple[str, ...]
    batches: Batches
    steps: int
    verify: bool = True


@dataclass(frozen=True)
class Candidates:
    """The ops that could be returned to FP32.

    Attributes:
        ops: the ops of the plan that compute or store 16 bits, in graph order.
        pinned: ids of the 16-bit ops that an override names as a node; the search keeps them.
        graph: SHA-256 of the graph's shape.
    """

    ops: tuple[Op, ...]
    pinned: tuple[str, ...]
    graph: str


@dataclass(frozen=True, slots=True)
class Returned:
    """An op that must be in FP32.

    Attributes:
        op: its id, which overrides name as ``node:ID``.
        kind: the name of its kind.
        where: its source position in the user's program.
        before: its errors while no op is returned.
        after: the largest error of its tensors when all found ops are in FP32.
    """

    op: str
    kind: str
    where: Where
    before: Suspect
    after: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of a search.

    Attributes:
        returned: the ops, in graph order; empty if no op must be returned.
        before: the measurement with none of them in FP32.
        after: the measurement with all of them in FP32.
        trials: the number of sets of ops that were tried.
        seconds: the duration of the trials.
    """

    returned: tuple[Returned, ...]
    before: str
    after: str
    trials: int
    seconds: float


def candidates(workload: Workload, search: Search) -> Candidates:
    """Plan a workload and return the ops that could be returned to FP32.

    Raises:
        BadInput, CannotCapture: see `mpcompile.compile`; or the workload has no loss.
    """
    if workload.loss is None:
        raise BadInput(
            "the workload has no loss and no optimizer", workload.origin, "add both to train it"
        )
    made = _transformed(workload, search, (), verify=search.verify)
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
    """Return a short text for everything that decides a search's result: see `trial_log.Head`."""
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
    """Return a function's score of the workload in FP32, and write it to the log if it is new."""
    if log.reference is None:
        with _seeded_and_quiet():
            reached = score(function, _in_full_precision(workload, search), backend)
        log.note(Reference(score=reached))
        return reached
    return log.reference


def _in_full_precision(workload: Workload, search: Search) -> Transformed:
    return transform(
        _fresh(workload), Choices(policy=FULL_PRECISION, without=search.without, verify=False)
    )


def tune(
    workload: Workload,
    search: Search,
    found: Candidates,
    judge: Judge,
    log: TrialLog,
    say: Callable[[str], None],
) -> Tuned:
    """Search, and write every trial to the log before the next one begins.

    Each trial gets a copy of the workload and the same random numbers: the generators of torch,
    NumPy and Python are seeded.

    Args:
        workload: stays as it is.
        search: the options of the search.
        found: the ops that can be returned.
        judge: decides whether the requirement holds in a trial.
        log: the known trials; new trials are added.
        say: is called with one sentence about every trial.

    Raises:
        CheckFailed: the requirement does not hold even in FP32.
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
                "the recorded ops are not the ops of this program",
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
        say(f"trial {len(log.trials)}: {len(ops)} more ops in FP32: {word}, {made.why}")
    return log.trials[ops]


def _hopeless(
    workload: Workload, search: Search, found: Candidates, judge: Judge, last: Trial
) -> CheckFailed:
    with _seeded_and_quiet():
        verdict: Verdict = judge(_in_full_precision(workload, search))
    if not verdict.holds or not found.pinned:
        why = last.why if verdict.holds else verdict.why
        return CheckFailed(
            f"the requirement does not hold in FP32 either: {why}",
            workload.origin,
            "change the program or the requirement; the precision is not the cause",
        )
    return CheckFailed(
        f"the requirement does not hold with all other {len(found.ops)} ops in FP32: {last.why}",
        workload.origin,
        f"remove the overrides that name nodes: {', '.join(found.pinned)}",
    )


def _suspects(
    workload: Workload, search: Search, full: Collection[str], ops: Collection[str]
) -> list[Suspect]:
    """Measure ops while some are in FP32, each node by itself."""
    if not ops:
        return []
    with _seeded_and_quiet():
        made = _transformed(workload, replace(search, without=OPTIONAL), full)
        return suspects(made, set(ops), search.batches, search.steps)


def _transformed(
    workload: Workload, search: Search, full: Collection[str], *, verify: bool = False
) -> Transformed:
    more = tuple(f"node:{op}" for op in sorted(full))
    policy = replace(search.policy, full=(*search.policy.full, *more))
    return transform(
        _fresh(workload),
        Choices(
            policy=policy,
            loss_scale=search.scale,
            ranges=search.ranges,
            without=search.without,
            verify=verify,
        ),
    )


def _fresh(workload: Workload) -> Workload:
    """Return a copy of the workload with its own model, optimizer and loss."""
    try:
        model, optimizer, loss = copy.deepcopy((workload.model, workload.optimizer, workload.loss))
    except Exception as error:
        raise BadInput(
            f"the model cannot be copied ({type(error).__name__}: {error})",
            workload.origin,
            "let copy.deepcopy((model, optimizer, loss)) work",
        ) from error
    return replace(workload, model=model, optimizer=optimizer, loss=loss)


@contextmanager
def _seeded_and_quiet() -> Iterator[None]:
    """Seed the generators, and silence warnings that the user saw when the program was planned."""
    seed_all(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmatchedOverride)
        warnings.simplefilter("ignore", MeasuredOverflow)
        warnings.simplefilter("ignore", SideEffect)
        yield
