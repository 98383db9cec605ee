"""Compare a rewritten model with its original, and count the casts that the runtime keeps."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from mpcompile.errors import BadInput, CheckFailed
from mpcompile.onnx.made_up.trials import made_up_inputs
from mpcompile.onnx.rewrite import Rewritten
from mpcompile.onnx.roles import Probability, roles
from mpcompile.onnx.sessions import (
    Array,
    Output,
    in_input_dtypes,
    run,
    session_of,
)
from mpcompile.onnx_graph.constants import mask_constants
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.masks import masked_by
from mpcompile.onnx_graph.nest import nest_of
from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names
from mpcompile.passes.onnx.emulate_onnx_half import emulate_onnx_half
from mpcompile.precision import Precision

TOLERANCE = {Precision.FP16: 2.0**-6, Precision.BF16: 2.0**-3, Precision.FP32: 0.0}
"""The default tolerance: largest error of an output, relative to its largest magnitude."""

_SMALLEST = 2.0**-24
"""FP16's smallest number above 0."""
_SHORT = {1: "f32", 10: "f16", 16: "bf16", 11: "f64"}  # by onnx.TensorProto.DataType


@dataclass(frozen=True)
class Difference:
    """The largest difference of one tensor between two models, over all batches.

    Attributes:
        tensor: its name.
        error: see `error_between`.
        node: the node that makes the tensor, with its op.
        role: what the tensor is, if it is a probability.
    """

    tensor: str
    error: float
    node: str = ""
    role: Probability | None = None

    @property
    def scale(self) -> str:
        """What the error is a share of, in words."""
        return "the largest magnitude" if self.role is None else "a probability of 1"

    def __str__(self) -> str:
        by = f", made by {self.node}" if self.node else ""
        if isinf(self.error):
            return f"{self.tensor} is finite in only one of the two models{by}"
        scale = self.scale.replace("the", "its", 1) if self.role is None else self.scale
        return f"{self.tensor} differs by {self.error:.3g} of {scale}{by}"


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        outputs: the difference of each output of the model.
        batches: how many batches were run.
        made_up: whether the inputs were random numbers.
        first: the first tensor over the tolerance, in the order of execution, or None.
        casts: per kind of cast, such as ``f32 to f16``, how many the runtime executes on a CPU.
        tolerance: the largest error allowed.
    """

    outputs: tuple[Difference, ...]
    batches: int
    made_up: bool
    first: Difference | None
    casts: Mapping[str, int]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(found.error <= self.tolerance for found in self.outputs)

    @property
    def worst(self) -> Difference:
        """The output with the largest error; an empty difference if there are no outputs."""
        return max(self.outputs, key=lambda found: found.error, default=Difference("", 0.0))


def compare(
    original: ir.Model,
    rewritten: Rewritten,
    batches: Iterable[Mapping[str, Array]] | None = None,
    tolerance: float | None = None,
    name_first: bool = True,
) -> Comparison:
    """Run both models on the same inputs, the rewritten one in pseudo FP16.

    ONNX Runtime's CPU provider computes chains of FP16 nodes in FP32. So the rewritten graph runs
    with each op's result rounded (`mpcompile.passes.onnx.emulate_onnx_half`). It also runs
    as it is, because that is what a user of the CPU gets.

    Args:
        original: the model before.
        rewritten: the model after.
        batches: inputs by name; default: made up, see `mpcompile.onnx.made_up.trials`.
        tolerance: default: `TOLERANCE` of the plan's precision.
        name_first: whether the first wrong tensor is searched, which runs both models again with
            all their tensors.

    Raises:
        BadInput: the original does not run on these inputs, or on any that was made up.
        CheckFailed: the original runs, and the rewritten model does not.
    """
    precision = rewritten.plan.precision
    allowed = TOLERANCE[precision] if tolerance is None else tolerance
    if batches is None:
        tried = made_up_inputs(original)
        given, wanted = [each.batch for each in tried], [each.made for each in tried]
    else:
        given = [dict(batch) for batch in batches]
        wanted = []
    if not given:
        raise BadInput("the data holds no batch", fix="give at least one")
    original, narrow = original.clone(), rewritten.model.clone()
    for model in (original, narrow):
        distinct_onnx_names(model)  # the runtime requires it
    rounded = narrow.clone()
    if rewritten.changed:  # else its 16-bit tensors are the user's own, not to be judged here
        emulate_onnx_half(rounded)
    wanted = wanted or _outputs(original, given)
    try:
        casts, as_run = _run_unchanged(narrow, given)
        found = _outputs(rounded, given, as_written=rewritten.changed)
    except BadInput as error:
        what = f"the rewritten model does not run here, but the original does ({error.what})"
        raise CheckFailed(what, fix="report this model") from error
    known = roles(original)
    errors = _errors([*wanted, *wanted], [*found, *as_run], known)
    outputs = tuple(Difference(name, error, "", known.get(name)) for name, error in errors.items())
    first = None
    if name_first and any(error > allowed for error in errors.values()):
        worst = max(outputs, key=lambda output: output.error)
        made = next(v for v in original.graph.outputs if v.name == worst.tensor)
        first = _first(original, rounded, given, allowed)
        first = first or replace(worst, node=_label(made.producer()))
    return Comparison(outputs, len(given), batches is None, first, casts, allowed)


def error_between(wanted: Output, found: Output, role: Probability | None = None) -> float:
    """Return the error of an output: a tensor, or a sequence of tensors.

    - In general the largest difference, relative to the largest magnitude.
    - Of probabilities: how much probability is elsewhere, of 1. Of those that sum to 1 along an
      axis, that is half the sum of the differences.
    - Of integers: the share of different elements.

    It is infinite if only one of the two is finite somewhere. If the second one is FP16, a
    difference of FP16's smallest number is none.

    Args:
        wanted: the output of the original.
        found: that of the rewritten model.
        role: see `mpcompile.onnx.roles`.
    """
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        errors = (error_between(one, other, role) for one, other in zip(wanted, found, strict=True))
        return max(errors, default=0.0)
    if not isinstance(wanted, np.ndarray) or not isinstance(found, np.ndarray):
        return 0.0 if wanted is None and found is None else float("inf")
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    if wanted.dtype.kind in "iubOSU":
        return float(np.mean(wanted != found))
    one, other = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    same = np.array_equal(one[~finite], other[~finite], equal_nan=True)
    if not same or not np.isfinite(other[finite]).all():
        return float("inf")
    differences = np.zeros(one.shape)
    differences[finite] = np.abs(one[finite] - other[finite])
    if found.dtype == np.float16:
        differences[differences <= _SMALLEST] = 0.0
    largest = float(np.abs(one[finite]).max(initial=0.0))
    distance = float(differences.max(initial=0.0))
    relative = distance / largest if largest else distance
    return relative if role is None else min(relative, _moved(differences, role))


def _moved(differences: NDArray[np.float64], role: Probability) -> float:
    """Return how much of a probability of 1 is elsewhere."""
    rank = differences.ndim
    if role.axis is None or not -rank <= role.axis < rank:
        return float(differences.max())
    axis = role.axis % rank
    axes = tuple(range(axis, rank)) if role.onward else (axis,)
    return float(differences.sum(axes).max()) / 2


def casts_of(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of Cast nodes between floating-point formats in a graph, per kind."""
    return dict(sorted(Counter(_casts(graph, {})).items()))


def _casts(graph: onnx.GraphProto, outer: Mapping[str, int]) -> Iterator[str]:
    """Yield the kind of each cast; ``outer`` holds the types of values in the outer graphs."""
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {**outer, **{value.name: value.type.tensor_type.elem_type for value in values}}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                types[node.output[0]] = attribute.i
                ends = types.get(node.input[0], 0), attribute.i
                if all(end in _SHORT for end in ends):
                    yield " to ".join(_SHORT[end] for end in ends)
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _casts(inner, types)


def _outputs(
    model: ir.Model, batches: list[dict[str, Array]], as_written: bool = False
) -> list[dict[str, Output]]:
    with session_of(model, as_written=as_written) as session:
        return [run(session, in_input_dtypes(model, batch)) for batch in batches]


def _run_unchanged(
    model: ir.Model, batches: list[dict[str, Array]]
) -> tuple[dict[str, int], list[dict[str, Output]]]:
    """Run a model as it is; return the casts that the runtime runs, and the results."""
    with tempfile.TemporaryDirectory(prefix="mpcompile-") as folder:
        file = Path(folder) / "optimized.onnx"
        with session_of(model, optimized=file) as session:
            made = [run(session, in_input_dtypes(model, batch)) for batch in batches]
        # The runtime wrote this file a moment ago into a private folder. The graph may be invalid:
        # an initializer of a branch may still be a Constant there too.
        return casts_of(onnx.load(file, load_external_data=False).graph), made


def _errors(
    wanted: list[dict[str, Output]],
    found: list[dict[str, Output]],
    known: Mapping[str, Probability],
) -> dict[str, float]:
    return {
        name: max(
            error_between(one[name], other[name], known.get(name))
            for one, other in zip(wanted, found, strict=True)
        )
        for name in wanted[0]
        if name in found[0]
    }


def _first(
    original: ir.Model, rounded: ir.Model, batches: list[dict[str, Array]], allowed: float
) -> Difference | None:
    """Return the first tensor over the tolerance, of all tensors of the outer graph.

    Those that a mask was put into do not count: any number that hides has the same effect.
    """
    infer_types(original)
    hidden: set[ir.Value] = set()
    for mask in mask_constants(nest_of(original.graph)):
        masked = masked_by(mask)
        hidden |= masked.values if masked else set()
    there = {value.name for node in rounded.graph for value in node.outputs if value.name}
    made = [v for node in original.graph for v in node.outputs if v.name in there]
    made = [value for value in made if value not in hidden]
    tensors = [value for value in made if isinstance(value.type, ir.TensorType)]
    names = {value.name for value in tensors}
    others = [v for node in rounded.graph for v in node.outputs if v.name in names]
    with session_of(original, tensors) as session:
        wanted = [run(session, batch) for batch in batches]
    with session_of(rounded, others, as_written=True) as session:
        found = [run(session, in_input_dtypes(rounded, batch)) for batch in batches]
    known = roles(original)
    errors = _errors(wanted, found, known)
    for value in tensors:
        node, name = value.producer(), str(value.name)
        if node is not None and errors.get(name, 0.0) > allowed:
            return Difference(name, errors[name], _label(node), known.get(name))
    return None


def _label(node: ir.Node | None) -> str:
    return "" if node is None else f"{node.name or 'a node without a name'} ({node.op_type})"
