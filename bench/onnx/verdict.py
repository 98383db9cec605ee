"""Judge whether a converted model is valid, loads, and computes the right outputs.

**Values.** Outputs of ONNX Runtime on a CPU are compared with the right outputs of the case. Each
number of a floating-point output must be within 2^-6 of the output's largest magnitude (2^-3 in
BF16), and infinities and NaN must be at the right positions. This is 32 roundings to FP16 (2^-11
each), as many as in a few layers one after the other; a wrong number, not only rounded, differs by
more. Integers, booleans and strings must be equal. Random numbers must agree in shape and dtype.

BF16 models do not load on a CPU; onnx's reference implementation runs them. It also runs models
that must overflow in FP16, because ONNX Runtime on a CPU computes most of FP16 in FP32, and models
whose FP32 model ONNX Runtime cannot run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

HALF, BF16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
TOLERANCE = {HALF: 2.0**-6, BF16: 2.0**-3}
NEWEST_IR = 13
"""The newest version of the file format that the runtime reads; the cases may be newer."""
RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split()
)


class Outcome(Enum):
    """The outcome of a conversion."""

    PASSED = "passed"
    """Valid, loads, and its outputs are right."""
    VALID = "valid"
    """Valid; no runner can run the FP32 model either."""
    UNCHANGED = "unchanged"
    """Unchanged, so it must be right; it is checked nevertheless."""
    INVALID = "invalid graph"
    """onnx's checker or its strict shape inference refuses it."""
    LOADS_NOT = "does not load"
    """The runtime refuses it, or fails in it."""
    WRONG_VALUES = "wrong values"
    WRONG_DTYPE = "wrong dtype"
    """An input or output is gone, or of another type."""
    RAISED = "raised"
    """The tool raised, crashed or took too long."""


GOOD = (Outcome.PASSED, Outcome.VALID, Outcome.UNCHANGED)


class Runner(Enum):
    """The program that runs a model."""

    RUNTIME = "ONNX Runtime"
    REFERENCE = "onnx's reference implementation"
    NONE = "nothing"


@dataclass(frozen=True, slots=True)
class Baseline:
    """Facts about a model before conversion; the converted model must meet only these.

    Attributes:
        checks: onnx's checker accepts it.
        infers: its strict shape inference accepts it.
        runner: the runner that computes its outputs right.
        why: the error or wrong result of the last runner, if none is right.
    """

    checks: bool
    infers: bool
    runner: Runner
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, with the reason if it is not a good one."""

    outcome: Outcome
    why: str = ""


Sets = Sequence[tuple[list[Any], list[Any]]]


def baseline_of(
    model: onnx.ModelProto,
    sets: Sets,
    runners: Sequence[Runner] = (Runner.RUNTIME, Runner.REFERENCE),
) -> Baseline:
    """Judge an unconverted model.

    Args:
        model: the model in FP32.
        sets: inputs and right outputs.
        runners: the runners to try, in this order.
    """
    why, found = "not tried", Runner.NONE
    for runner in runners if sets else ():
        why = _runs(model, sets, TOLERANCE[HALF], runner)
        if not why:
            found = runner
            break
    return Baseline(not _checks(model), not _infers(model), found, why)


def judge(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    sets: Sets,
    baseline: Baseline,
    bf16: bool = False,
) -> Verdict:
    """Judge a converted model.

    Args:
        before: the model in FP32.
        after: the model that a tool made from it.
        sets: inputs and right outputs.
        baseline: the facts about `before`.
        bf16: whether the tolerance is that of BF16.
    """
    if baseline.checks and (why := _checks(after)):
        return Verdict(Outcome.INVALID, why)
    if baseline.infers and (why := _infers(after)):
        return Verdict(Outcome.INVALID, why)
    was, now = _border(before), _border(after)
    for name in [*was, *now]:
        if was.get(name) != now.get(name):
            return Verdict(Outcome.WRONG_DTYPE, f"{name}: {was.get(name)} became {now.get(name)}")
    if baseline.runner is not Runner.NONE:
        tolerance = TOLERANCE[BF16 if bf16 else HALF]
        why = _runs(after, sets, tolerance, baseline.runner, _is_random(before))
        if why:
            wrong = why.startswith("output ")
            return Verdict(Outcome.WRONG_VALUES if wrong else Outcome.LOADS_NOT, why)
    if _narrow(before) == _narrow(after):
        return Verdict(Outcome.UNCHANGED)
    return Verdict(Outcome.VALID if baseline.runner is Runner.NONE else Outcome.PASSED)


def _checks(model: onnx.ModelProto) -> str:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return _line(error)
    return ""


def _infers(model: onnx.ModelProto) -> str:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return _line(error)
    return ""


def _border(model: onnx.ModelProto) -> dict[str, str]:
    """Return the types of the required inputs and of the outputs; defaults may be removed."""
    held = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in held]
    return {value.name: _type(value.type) for value in (*given, *model.graph.output)}


def _type(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return f"{which}({_type(getattr(kind, which).elem_type)})"
    return f"{which}({getattr(kind, which).elem_type})" if which == "tensor_type" else str(which)


def _runs(
    model: onnx.ModelProto,
    sets: Sets,
    tolerance: float,
    runner: Runner,
    random: bool | None = None,
) -> str:
    """Return why a model does not load, or which output is wrong; "" if all is right."""
    random = _is_random(model) if random is None else random
    given = [value.name for value in model.graph.input]
    held = {tensor.name for tensor in model.graph.initializer}
    fed = [name for name in given if name not in held]
    try:
        run = _by_reference(model) if runner is Runner.REFERENCE else _by_runtime(model)
        for inputs, right in sets:
            names = fed if len(fed) == len(inputs) else given
            feeds = {name: _fed(x) for name, x in zip(names, inputs, strict=False) if name}
            for index, (got, want) in enumerate(zip(run(feeds), right, strict=True)):
                if why := _differs(got, want, tolerance, random):
                    return f"output {index}: {why}"
    except Exception as error:
        return _line(error)
    return ""


def _fed(given: Any) -> Any:
    return np.asarray(given) if isinstance(given, np.generic) else given


def _by_runtime(model: onnx.ModelProto) -> Any:
    import onnxruntime  # in the worker only

    # The cases may have a future op set; ops that it did not change run anyway.
    os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.ir_version = min(model.ir_version, NEWEST_IR)
    session = onnxruntime.InferenceSession(
        older.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: session.run(None, feeds)


def _by_reference(model: onnx.ModelProto) -> Any:
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: evaluator.run(None, feeds)


def _differs(got: Any, want: Any, tolerance: float, random: bool) -> str:
    if want is None or got is None:
        return "" if want is got else "one is there and the other is not"
    if isinstance(want, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            return "not as many in the sequence"
        pairs = zip(got, want, strict=True)
        return next(filter(None, (_differs(x, y, tolerance, random) for x, y in pairs)), "")
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        if want.dtype.kind in "OUS" and got.dtype.kind in "OUS" and got.shape == want.shape:
            return "" if (got.astype(str) == want.astype(str)).all() else "other strings"
        return f"{got.dtype}{[*got.shape]} instead of {want.dtype}{[*want.shape]}"
    if random:
        return ""
    if want.dtype.kind in "biuOUS":
        wrong = int((got != want).sum())
        return f"{wrong} of {want.size} differ" if wrong else ""
    return _far(got, want, tolerance)


def _far(got: Any, want: Any, tolerance: float) -> str:
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    got, want = got.astype(wide), want.astype(wide)
    finite = np.isfinite(want)
    same = np.array_equal(got[~finite], want[~finite], equal_nan=True)
    if not same or not np.isfinite(got[finite]).all():
        wrong = int((np.isfinite(got) != finite).sum())
        return f"{wrong} of {want.size} numbers are not finite, or are and should not be"
    if not finite.any():
        return ""
    error = float(np.abs(got[finite] - want[finite]).max())
    largest = float(np.abs(want[finite]).max())
    if error <= tolerance * largest:
        return ""
    return f"off by {error:.3g}, where the largest is {largest:.3g}"


def _is_random(model: onnx.ModelProto) -> bool:
    for node in _nodes(model):
        trained = node.op_type == "Dropout" and len(node.input) > 2
        if node.op_type in RANDOM or trained:
            return True
    return False


def _narrow(model: onnx.ModelProto) -> int:
    """Count the 16-bit weights and constants of a model, and its casts to 16 bits."""
    count = 0
    for graph in _graphs(model):
        count += sum(tensor.data_type in TOLERANCE for tensor in graph.initializer)
    for node in _nodes(model):
        for attribute in node.attribute:
            count += attribute.t.data_type in TOLERANCE
            count += node.op_type == "Cast" and attribute.i in TOLERANCE
    return count


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _line(error: Exception) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:300]}"
