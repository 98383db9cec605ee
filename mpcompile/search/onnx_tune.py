"""The few ops of an ONNX graph that must stay FP32 so that its outputs hold, found by trials."""

from __future__ import annotations

import heapq
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from mpcompile.errors import CheckFailed, CompileError
from mpcompile.onnx.comparison import TOLERANCE, Comparison, compare, error_between
from mpcompile.onnx.made_up.trials import made_up_inputs
from mpcompile.onnx.rewrite import Rewritten, given_model, prepare, rewrite
from mpcompile.onnx.roles import Probability, roles
from mpcompile.onnx.sessions import Array, Output, in_input_dtypes, run, session_of
from mpcompile.onnx_graph.kernels import Target
from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names
from mpcompile.passes.onnx.switch_onnx_rounding import SWITCHES, SwitchOnnxRounding
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.search.delta_debugging import smallest_sufficient

_UNTIL_ORDERED = 0.35
"""The share of the time after which the order of the ops is no longer refined."""
_ROUNDS = ((1.0, 0.5), (0.7, 0.65))
"""Which share of the tolerance a trial may use, because it is not the rewritten model itself, and
the share of the time after which the fewest ops so far are taken."""
_OF_PREFIX = (0.7, 0.4)
"""The same share, where the first part of the graph is kept."""
_ENOUGH = 0.5
"""The search ends with a model that has this share of the 16-bit ops left."""
_STAY = frozenset("Cast CastLike Constant If Loop Scan Identity".split())
"""A constant is rounded with its readers."""


@dataclass(frozen=True)
class OnnxSearch:
    """A model, how it is rewritten, and how it is compared.

    Attributes:
        original: the model before.
        policy: its overrides hold in every trial.
        ranges: see `mpcompile.onnx.rewrite.rewrite`.
        target: see there.
        keep_io: see there.
        batches: inputs by name, or None if they are made up.
        tolerance: see `mpcompile.onnx.comparison.compare`.
        seconds: when the search ends; a rewrite and a comparison that have begun are completed.
        trials: the most runs of all batches.
    """

    original: ir.Model
    policy: Policy = field(default_factory=Policy)
    ranges: Ranges | None = None
    target: Target = Target.ANY
    keep_io: bool = True
    batches: Sequence[Mapping[str, Array]] | None = None
    tolerance: float | None = None
    seconds: float = 60.0
    trials: int = 500

    @property
    def allowed(self) -> float:
        """The largest error that an output may have."""
        default = TOLERANCE[self.policy.precision]
        return default if self.tolerance is None else self.tolerance

    def rewritten(self, full: Collection[str] = ()) -> Rewritten:
        """Rewrite the model with some more ops in FP32."""
        patterns = [f"node:{op}" for op in full]
        policy = replace(self.policy, full=(*self.policy.full, *patterns))
        return rewrite(
            self.original, policy, ranges=self.ranges, target=self.target, keep_io=self.keep_io
        )

    def compared(self, rewritten: Rewritten, name_first: bool = True) -> Comparison:
        """Compare a rewritten model with the original."""
        return compare(self.original, rewritten, self.batches, self.tolerance, name_first)


@dataclass(frozen=True)
class TunedOnnx:
    """A rewritten model whose outputs hold.

    Attributes:
        rewritten: the model, its plan and notes.
        comparison: with the original; it has passed.
        kept: ids of the ops that stay in FP32 for it, in the order of the graph; empty if none has
            to. An override names one as ``node:ID``.
        before: how many ops compute or store 16 bits without that.
        after: how many still do.
        trials: how many sets of ops were tried.
        seconds: how long the search took.
    """

    rewritten: Rewritten
    comparison: Comparison
    kept: tuple[str, ...] = ()
    before: int = 0
    after: int = 0
    trials: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        some = ", ".join(self.kept[:8]) + (f" and {len(self.kept) - 8} more" * (len(self.kept) > 8))
        return (
            f"kept in FP32, because the outputs do not hold otherwise: {some}; so {self.after} "
            f"instead of {self.before} ops are 16 bits ({self.trials} trials, {self.seconds:.0f} s)"
        )


def tune_onnx(
    model: ir.Model | onnx.ModelProto | str | Path,
    batches: Iterable[Mapping[str, Array]] | None = None,
    policy: Policy | None = None,
    *,
    ranges: Ranges | None = None,
    target: Target = Target.ANY,
    keep_io: bool = True,
    tolerance: float | None = None,
    seconds: float = 60.0,
) -> TunedOnnx:
    """Rewrite a model, compare it, and keep the few ops in FP32 without which an output is too far.

    Args:
        model: as for `mpcompile.onnx.rewrite.rewrite`.
        batches: inputs by name; default: made up.
        policy: as for `rewrite`.
        ranges: as for `rewrite`.
        target: as for `rewrite`.
        keep_io: as for `rewrite`.
        tolerance: as for `mpcompile.onnx.comparison.compare`.
        seconds: when the search ends.

    Raises:
        BadInput: the model, the policy or the batches are wrong.
        CheckFailed: no few ops were found that mend it.
    """
    given = None if batches is None else [dict(batch) for batch in batches]
    search = OnnxSearch(
        given_model(model), policy or Policy(), ranges, target, keep_io, given, tolerance, seconds
    )
    rewritten = search.rewritten()
    found = search.compared(rewritten)
    if found.passed:
        return TunedOnnx(rewritten, found)
    tuned = keep_few(search, rewritten)
    if tuned is None:
        raise CheckFailed(
            f"the rewritten model does not compute what the model computes: {found.first}",
            fix="no few ops in FP32 were found that mend it; give ranges=, or raise the tolerance",
        )
    return tuned


def keep_few(search: OnnxSearch, rewritten: Rewritten) -> TunedOnnx | None:
    """Return the model with few more ops in FP32, so that it passes; None if they are not found.

    The graph is loaded once, with a switch for the rounding of each op. First parts of the graph
    are rounded alone, the worst part in halves again, which orders the ops by what they do to the
    outputs. Then `smallest_sufficient` finds the ops that must not round. Where many ops each add a
    little, the first part of the graph is kept instead: errors grow on the way to the outputs. The
    model is rewritten and compared with these ops in FP32 before it is returned.

    Args:
        search: the model.
        rewritten: the model that differs too much.
    """
    start, before = time.monotonic(), len(narrow_ops(rewritten))
    best: TunedOnnx | None = None
    try:
        with _switched(search, rewritten) as switched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for chosen in _attempts(switched, search, start):
                kept = tuple(op for op in switched.ops if op in chosen)
                done = search.rewritten(kept)
                found = search.compared(done, name_first=False)
                after = len(narrow_ops(done))
                if found.passed and (best is None or after > best.after):
                    seconds = time.monotonic() - start
                    best = TunedOnnx(done, found, kept, before, after, switched.runs, seconds)
                if best is not None and best.after >= _ENOUGH * before:
                    break
                switched.take_worst([op for op in switched.ops if op not in chosen])
    except CompileError:  # the runtime refuses the switches, or an override contradicts another
        return best
    return best


def _attempts(switched: _Switched, search: OnnxSearch, start: float) -> Iterator[frozenset[str]]:
    """Yield ops that may have to stay in FP32, each set once."""
    seen: set[frozenset[str]] = set()
    order = _by_impact(switched, start + _UNTIL_ORDERED * search.seconds)
    for share, until in _ROUNDS:
        allowed, end = share * search.allowed, start + until * search.seconds
        chosen = _smallest(switched, order, allowed, end)
        if chosen is not None and chosen not in seen:
            seen.add(chosen)
            yield chosen
    for share in _OF_PREFIX:
        chosen = _prefix(switched, share * search.allowed, start + search.seconds)
        if chosen is not None and chosen not in seen:
            seen.add(chosen)
            yield chosen


def _prefix(switched: _Switched, allowed: float, until: float) -> frozenset[str] | None:
    """Return the first ops of the graph that must not round, on all batches."""
    fails, holds = 0, len(switched.ops)
    while holds - fails > max(1, len(switched.ops) // 64):
        if switched.spent or time.monotonic() > until:
            return None
        middle = (fails + holds) // 2
        if switched.error_of_all(switched.ops[middle:]) <= allowed:
            holds = middle
        else:
            fails = middle
    return frozenset(switched.ops[:holds])


def narrow_ops(rewritten: Rewritten) -> list[str]:
    """Return the ops that compute or store 16 bits by the plan of a rewritten model."""
    decisions = rewritten.plan.decisions
    return [d.op for d in decisions if {d.computes, d.stores} != {Precision.FP32}]


class _Switched:
    """A loaded graph whose ops round only if they are told to; it runs the batch that shows most.

    Attributes:
        ops: ids of the ops that have a switch, in the order of the graph.
        runs: how many sets of ops were tried.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        ops: Sequence[str],
        batches: Sequence[Mapping[str, Array]],
        known: Mapping[str, Probability],
        most: int,
    ) -> None:
        self.ops = tuple(ops)
        self.runs = 0
        self._session, self._known, self._most = session, known, most
        self._number = {op: k for k, op in enumerate(ops)}
        self._errors: dict[frozenset[str], float] = {}
        self._pairs = [(batch, self._outputs(batch, ())) for batch in batches]
        self.take_worst(ops)

    def error_of_all(self, on: Collection[str]) -> float:
        """Return the largest error over all batches if some ops round."""
        self.runs += 1
        return max(self._between(wanted, self._outputs(given, on)) for given, wanted in self._pairs)

    def take_worst(self, on: Collection[str]) -> None:
        """Run from now on the batch that shows most if some ops round."""
        errors = [self._between(wanted, self._outputs(given, on)) for given, wanted in self._pairs]
        self._batch, self._wanted = self._pairs[int(np.argmax(errors))]
        self._errors.clear()

    @property
    def spent(self) -> bool:
        """Whether no further set may be tried."""
        return self.runs >= self._most

    def error(self, on: Collection[str]) -> float:
        """Return the largest error of an output if some ops round.

        Args:
            on: ids of the ops that round.
        """
        key = frozenset(on)
        if key not in self._errors:
            self.runs += 1
            self._errors[key] = self._between(self._wanted, self._outputs(self._batch, on))
        return self._errors[key]

    def _between(self, wanted: Mapping[str, Output], found: Mapping[str, Output]) -> float:
        errors = (error_between(wanted[n], found[n], self._known.get(n)) for n in wanted)
        return max(errors, default=0.0)

    def _outputs(self, batch: Mapping[str, Array], on: Collection[str]) -> dict[str, Output]:
        flags = np.zeros(len(self.ops), bool)
        flags[[self._number[op] for op in on]] = True
        return run(self._session, {**batch, SWITCHES: flags})


@contextmanager
def _switched(search: OnnxSearch, rewritten: Rewritten) -> Iterator[_Switched]:
    precision = rewritten.plan.precision
    prepared = prepare(search.original, search.policy, precision, search.target, search.keep_io)
    narrow = set(narrow_ops(rewritten))
    nodes = {
        node: op
        for node, op in prepared.nest.nodes.items()
        if op in narrow and node.op_type not in _STAY
    }
    dtype = ir.DataType.FLOAT16 if precision is Precision.FP16 else ir.DataType.BFLOAT16
    known = roles(search.original)
    batches = search.batches or [each.batch for each in made_up_inputs(search.original)]
    batches = [in_input_dtypes(search.original, batch) for batch in batches]
    if not SwitchOnnxRounding({node: k for k, node in enumerate(nodes)}, dtype)(prepared.model):
        raise CheckFailed("nothing can be switched")
    distinct_onnx_names(prepared.model)
    with session_of(prepared.model, as_written=True) as session:
        yield _Switched(session, list(nodes.values()), batches, known, search.trials)


def _by_impact(switched: _Switched, until: float) -> list[str]:
    """Return all ops, first those that change the outputs most if they alone round."""
    order: list[str] = []
    parts: list[tuple[float, int, tuple[str, ...]]] = [(-float("inf"), 0, switched.ops)]
    while parts:
        _, first, part = heapq.heappop(parts)
        if len(part) == 1 or switched.spent or time.monotonic() > until:
            order += part
            continue
        half = len(part) // 2
        for start, some in ((first, part[:half]), (first + half, part[half:])):
            heapq.heappush(parts, (-switched.error(some), start, some))
    return order


def _smallest(
    switched: _Switched, order: Sequence[str], allowed: float, until: float
) -> frozenset[str] | None:
    """Return the fewest ops that must not round; the fewest so far if the time is over.

    None if not even all of them together suffice.
    """
    everything = frozenset(order)
    best = everything

    def suffices(kept: frozenset[str]) -> bool:
        nonlocal best
        if switched.spent or time.monotonic() > until:
            raise TimeoutError
        holds = switched.error(everything - kept) <= allowed
        if holds and len(kept) < len(best):
            best = kept
        return holds

    try:
        return frozenset(smallest_sufficient(order, suffices))
    except TimeoutError:
        return best if best != everything else None
