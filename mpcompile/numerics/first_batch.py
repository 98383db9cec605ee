"""The first batch in 16 bits beside the same batch in FP32: loss, gradients, written state.

The results in FP32 are those of the proof on the first batch (`mpcompile.program.proof`), so this
costs one run of the gradient graph. It costs one more, in FP64, if a result is over its limit and
FP32 itself may not know it: the gradient of a bias before a batch norm is noise in any precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isinf, sqrt

import torch

from mpcompile.errors import Unverified, warn
from mpcompile.numerics.lockstep import EXACT, Moment, results_of
from mpcompile.numerics.node_errors import explained_by, relative_error
from mpcompile.numerics.unbound import unbound_moment
from mpcompile.precision import Precision
from mpcompile.program.proof.verify import Proof
from mpcompile.program.random_state import RandomState
from mpcompile.program.tracing.export import first_line
from mpcompile.step.graph import results
from mpcompile.step.loss_scale import SEARCH
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed

VALUE = {Precision.FP16: 2.0**-6, Precision.BF16: 2.0**-3}
"""The largest error of the loss and of written state, as for an output of an ONNX model."""
GRADIENT = {Precision.FP16: 0.5, Precision.BF16: 0.75}
"""The largest error of a gradient; one that has vanished has the error 1."""

_ROUNDING = {Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}
_NOISE = 4.0


@dataclass(frozen=True, slots=True)
class Far:
    """A result that is too far from FP32.

    Attributes:
        what: its name in a sentence.
        slot: its slot in the gradient graph.
        error: its relative error; infinite if FP32 has zeros only, or if it is not finite.
        limit: the largest error that is accepted.
        finite: whether all its numbers are finite that are finite in FP32.
    """

    what: str
    slot: str
    error: float
    limit: float
    finite: bool = True

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.what} has numbers that are not finite, and FP32 has none"
        if isinf(self.error):
            return f"{self.what} is not zero, and in FP32 it is"
        return f"{self.what} differs from FP32 by {self.error:.2g} of its size, over {self.limit:g}"


@dataclass(frozen=True, slots=True, eq=False)
class FirstBatch:
    """The first batch of a step in 16 bits, compared.

    Attributes:
        moment: what the step has read, at a loss scale at which gradients are finite.
        loss: the relative error of the loss.
        gradient: the largest relative error of a gradient that is within its limit.
        far: the results over their limits, the loss first.
    """

    moment: Moment
    loss: float
    gradient: float
    far: tuple[Far, ...]


def compare(transformed: Transformed, proof: Proof) -> FirstBatch | None:
    """Compare the first batch in 16 bits with FP32; None if there is nothing to compare.

    That is so in FP32, if the loss of the program is not finite, and if several processes share the
    step: its gradients are means then. Warns with `Unverified` if torch cannot run the step.

    Args:
        transformed: the step; its workload is read, not changed.
        proof: of the same workload.
    """
    precision = transformed.plan.precision
    shared = transformed.choices.loop.parallel is not None
    if transformed.step is None or precision not in GRADIENT or shared:
        return None
    if not bool(proof.full.loss.isfinite()):
        return None
    try:
        return _compared(transformed, proof)
    except (RuntimeError, NotImplementedError) as error:  # no kernel, no memory
        what = f"the step in 16 bits was not compared with FP32: {first_line(error)}"
        warn(what, Unverified)
        return None


def _compared(transformed: Transformed, proof: Proof) -> FirstBatch:
    full = proof.full
    moment, scale, ours = settled(transformed, proof.random, full.gradients)
    wanted = list(_wanted(transformed, proof, scale))
    errors = {item.slot: item.error(ours) for item in wanted}
    over = [item for item in wanted if not errors[item.slot] <= item.limit]
    endless = [item for item in over if not item.is_finite(ours)]
    if not endless:  # else it is certain without another run
        typical = _typical(full.gradients)
        over = _without_noise(over, moment, ours, typical, transformed.plan.precision)
    return FirstBatch(
        moment,
        errors[wanted[0].slot],
        max(_within(wanted, errors), default=0.0),
        tuple(
            Far(item.what, item.slot, errors[item.slot], item.limit, item.is_finite(ours))
            for item in endless or over
        ),
    )


def _within(wanted: list[_Wanted], errors: Mapping[str, float]) -> Iterator[float]:
    """Yield the errors of gradients within their limits; the others are noise, or far."""
    for item in wanted:
        if item.is_gradient and errors[item.slot] <= item.limit:
            yield errors[item.slot]


def settled(
    transformed: Transformed,
    random: RandomState,
    full: Mapping[str, torch.Tensor | None] | None = None,
    scale: float | None = None,
) -> tuple[Moment, float, dict[str, torch.Tensor]]:
    """Run the batch at the largest loss scale that suits it, as a dynamic scale finds it.

    Args:
        transformed: the step.
        random: the random numbers to draw.
        full: the gradients in FP32; where one is not finite, no loss scale helps.
        scale: the loss scale to begin with; default: that of the step.

    Returns:
        The inputs, the loss scale, and the results by slot.
    """
    rule = transformed.choices.scale
    scale = rule.initial if scale is None else scale
    hopeless = full is not None and not all(
        bool(value.isfinite().all()) for value in full.values() if value is not None
    )
    while True:
        moment = unbound_moment(transformed, random, scale)
        (ours,) = results_of(moment)
        lowest = not rule.dynamic or scale * SEARCH < rule.floor or hopeless
        if lowest or not _finite(ours, Role.LOSS, moment) or _finite(ours, Role.GRADIENT, moment):
            return moment, scale, ours
        scale *= SEARCH


def is_finite(moment: Moment, results: Mapping[str, torch.Tensor]) -> bool:
    """Whether the loss and all gradients of a step are finite."""
    return _finite(results, Role.LOSS, moment) and _finite(results, Role.GRADIENT, moment)


def _finite(results: Mapping[str, torch.Tensor], role: Role, moment: Moment) -> bool:
    slots = moment.step.slots
    return all(
        bool(value.isfinite().all()) for name, value in results.items() if slots[name].role is role
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A result in FP32; `scale` is the factor that the step's own has."""

    what: str
    slot: str
    value: torch.Tensor
    limit: float
    scale: float

    @property
    def is_gradient(self) -> bool:
        return self.slot.startswith("grad.")

    def error(self, results: Mapping[str, torch.Tensor]) -> float:
        return relative_error(self.of(results), self.value)

    def is_finite(self, results: Mapping[str, torch.Tensor]) -> bool:
        """Whether every number is finite that is finite in FP32."""
        return bool((results[self.slot].isfinite() | ~self.value.isfinite()).all())

    def of(self, results: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the same result of another run, unscaled, in FP32 or FP64."""
        value = results[self.slot]
        wide = value if value.dtype is EXACT else value.float()
        return wide / self.scale


def _wanted(transformed: Transformed, proof: Proof, scale: float) -> Iterator[_Wanted]:
    """Yield what is compared: the loss, written state, gradients."""
    step, full = transformed.step, proof.full
    assert step is not None
    precision = transformed.plan.precision
    value, gradient = VALUE[precision], GRADIENT[precision]
    slots = [step.slots[name] for name in results(step.gradient.graph)]
    for slot in slots:
        if slot.role is Role.LOSS:
            yield _Wanted("the loss", slot.name, full.loss, value, 1.0)
    for slot in slots:
        name = slot.name.removeprefix("next.")
        written = full.written.get(name) if slot.role is Role.UPDATED else None
        if written is not None and written.is_floating_point():
            yield _Wanted(f"the next value of {name}", slot.name, written, value, 1.0)
    for slot in slots:
        name = slot.name.removeprefix("grad.")
        found = full.gradients.get(name) if slot.role is Role.GRADIENT else None
        if found is not None and found.is_floating_point():
            yield _Wanted(f"the gradient of {name}", slot.name, found, gradient, scale)


def _without_noise(
    over: list[_Wanted],
    moment: Moment,
    ours: Mapping[str, torch.Tensor],
    typical: float,
    precision: Precision,
) -> list[_Wanted]:
    """Return the results whose error rounding alone does not explain."""
    over = [item for item in over if not _is_quiet(item, ours, typical * _ROUNDING[precision])]
    if not over:
        return []
    _, exact = results_of(moment, EXACT)
    coarser = 2.0**-11 / _ROUNDING[precision]
    left = []
    for item in over:
        true = item.of(exact)
        full = relative_error(item.value, true)
        error = relative_error(item.of(ours), true)
        if not error <= max(item.limit, explained_by(full) / coarser):
            left.append(item)
    return left


def _is_quiet(item: _Wanted, ours: Mapping[str, torch.Tensor], rounding: float) -> bool:
    """Whether a gradient is far below its error, and the error below the rounding of the others."""
    if not item.is_gradient:
        return False
    wrong = float((item.of(ours) - item.value).norm())
    noise = wrong > _NOISE * float(item.value.norm())
    return noise and wrong < rounding * sqrt(item.value.numel())


def _typical(gradients: Mapping[str, torch.Tensor | None]) -> float:
    """Return the root mean square of all numbers of all gradients."""
    found = [value for value in gradients.values() if value is not None]
    count = sum(value.numel() for value in found)
    return sqrt(sum(float(value.norm()) ** 2 for value in found) / max(count, 1))
