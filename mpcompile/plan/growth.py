"""Keep ops in FP32 behind one whose result can leave FP16's range, until an op bounds it.

``x.pow(2).mean(-1) + eps`` is a square in FP32, and a mean and a sum that could take either
precision: in FP16 they would overflow although the square did not. Type promotion under autocast
has the same effect.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.bounds.bound import Bound
from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.op_table import TABLE, rows_of
from mpcompile.plan.rule import PrecisionClass, Wish
from mpcompile.precision import Precision

GROWING: frozenset[str] = frozenset(
    (
        "loss",
        "log_sigmoid",
        "range grows",
        "special function",
        "sum",
        "scatter sum",
        "vector norm",
        "variance",
        "linear algebra",
    )
)
"""Rows whose results can be too large for FP16 even if their inputs are not."""

LINEAR: frozenset[str] = frozenset(
    "softplus logsumexp special_logsumexp logaddexp logaddexp2 log_sigmoid log_sigmoid_forward "
    "Softplus ReduceLogSumExp".split()
)
"""Ops of these rows whose results are too large for FP16 only if their inputs are."""

BOUNDED: frozenset[str] = frozenset(
    "layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm batch_norm "
    "instance_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
    "_native_batch_norm_legit_no_training _batch_norm_with_update_functional "
    "_batch_norm_no_update cudnn_batch_norm softmax _softmax _safe_softmax special_softmax "
    "_masked_softmax cosine_similarity corrcoef sin cos tanh atan arctan atan2 arctan2 acos arccos "
    "asin arcsin log log2 log10 log1p special_log1p asinh arcsinh acosh arccosh sinc special_sinc "
    "erf special_erf erfc special_erfc sigmoid special_expit hardsigmoid hardtanh relu6 sign sgn "
    "LayerNormalization GroupNormalization BatchNormalization InstanceNormalization "
    "RMSNormalization SimplifiedLayerNormalization MeanVarianceNormalization Softmax Hardmax Sin "
    "Cos Tanh Atan Acos Asin Asinh Acosh Log Erf Sigmoid HardSigmoid Softsign Sign".split()
)
"""Ops whose result is small for every input, torch and ONNX names."""


_READS_BOTH_SIZES = frozenset(("atan2", "arctan2"))
"""Bounded ops to which two infinite numbers are not what two large ones are."""

_TENSOR_CORE = rows_of(PrecisionClass.TENSOR_CORE)


_INSIDE = frozenset(rule.name for rule in TABLE if rule.inside)


def contain_growth(flow: Dataflow, precision: Precision) -> Dataflow:
    """Return the graph with FP32 for free ops that read a tensor that has grown.

    Growth starts at an op of a row in `GROWING`, at a constant that FP16 cannot hold, or at
    integers of unknown size. It ends at an op in `BOUNDED`, at a Tensor-Core op that computes in 16
    bits, at a tensor that was measured to fit, and at an op whose precision the user has set. A
    bounded op that would sum 16-bit inputs in FP32 gets FP32 inputs. BF16 has the range of FP32, so
    nothing changes.

    Args:
        flow: the neutral graph.
        precision: the 16-bit format.
    """
    if precision is not Precision.FP16:
        return flow
    fits = {tensor.id for tensor in flow.tensors if tensor.fits}
    large = {tensor.id for tensor in flow.tensors if _is_large(tensor.bound)}
    grown: dict[str, Op] = {}
    known = -1
    while len(grown) > known:  # the body of a loop passes grown tensors to its next round
        known = len(grown)
        flow = Dataflow(tuple(_contained(op, grown, fits, large) for op in flow.ops), flow.tensors)
    return flow


def _contained(op: Op, grown: dict[str, Op], fits: set[str], large: set[str]) -> Op:
    """Return an op after growth; note which of its results have grown and why."""
    source = next((grown[name] for name in op.reads if name in grown), None)
    # A norm multiplies by its weight, which may be computed, too.
    bounded = op.kind in BOUNDED and not any(name in grown for name in op.full_reads)
    if op.unfit and op.wish is not Wish.FULL and not op.overridden:
        op = replace(op, wish=Wish.FULL, reason=op.unfit)
    if op.wish is Wish.HALF or (op.rule in _TENSOR_CORE and not op.unfit):
        source = None
    elif op.unfit or (op.rule in GROWING and not bounded and op.kind not in LINEAR):
        source = op
    elif op.overridden or bounded:
        sums = op.rule in _INSIDE and not op.inside
        if source is not None and op.wish is Wish.FREE and (sums or op.kind in _READS_BOTH_SIZES):
            # It would sum 16-bit inputs in FP32, and those may be infinite.
            op = replace(op, wish=Wish.FULL, reason=_follows(source))
        source = None
    elif source is None and op.rule == "cast" and not large.isdisjoint(op.writes):
        source = op
    elif source is not None and op.wish is Wish.FREE:
        op = replace(op, wish=Wish.FULL, reason=_follows(source))
    if source is not None:
        for name in op.writes:
            if name not in fits:
                grown.setdefault(name, source)
    return op


def _is_large(bound: Bound) -> bool:
    """Whether integers can be too large: a count, a time, an id of unknown size."""
    return bound.integer and bound.size > Precision.FP16.largest and not bound.rounded


def _follows(source: Op) -> str:
    return f"it follows {source.id}, whose result may not fit FP16"
