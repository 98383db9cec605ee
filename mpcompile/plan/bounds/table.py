"""The bound of each kind of op, torch and ONNX names in one table; an op in no row has no bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from mpcompile.plan.bounds.choices import (
    cast_exactly,
    chosen,
    filled,
    floor_divide,
    fraction,
    modulo,
    position,
    remainder,
    stepped,
    truth,
    wave,
)
from mpcompile.plan.bounds.functions import (
    ONE,
    ZERO,
    Args,
    Row,
    any_of,
    between,
    cast,
    clamp,
    clamped,
    constant,
    counted,
    difference_from,
    dropped,
    exponential,
    given,
    held,
    layer,
    magnitude,
    maximum,
    mean,
    minimum,
    negative,
    normed,
    power,
    product,
    quotient,
    relu,
    root,
    same,
    scaled_add,
    softmax,
    square,
    summed,
    with_dip,
    with_zero,
)


def _rows(*rows: tuple[Row, str]) -> Mapping[str, Row]:
    found: dict[str, Row] = {}
    for row, names in rows:
        for name in names.split():
            if name in found:
                raise ValueError(f"{name} is in two rows")
            found[name] = row
    return MappingProxyType(found)


MOVES: Mapping[str, Row] = _rows(
    (same, "view _unsafe_view reshape _reshape_alias reshape_as view_as flatten unflatten ravel "
     "permute transpose swapaxes swapdims movedim moveaxis t mT numpy_T squeeze unsqueeze expand "
     "expand_as broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d contiguous clone "
     "alias detach lift lift_fresh lift_fresh_copy slice select narrow split split_with_sizes "
     "chunk tensor_split unbind cat concat concatenate stack hstack vstack dstack flip roll repeat "
     "tile repeat_interleave diagonal unfold meshgrid pixel_shuffle pixel_unshuffle index "
     "index_select gather take take_along_dim masked_select embedding upsample_nearest1d "
     "upsample_nearest2d upsample_nearest3d reflection_pad1d reflection_pad2d reflection_pad3d "
     "replication_pad1d replication_pad2d replication_pad3d max amax min amin sort msort topk "
     "kthvalue cummax cummin max_pool1d max_pool2d max_pool3d own_backward getitem "
     "Reshape Transpose Flatten Squeeze Unsqueeze Expand Identity Slice Split Concat Tile "
     "DepthToSpace SpaceToDepth Gather GatherElements GatherND ReduceMax ReduceMin TopK MaxPool "
     "GlobalMaxPool Compress ReverseSequence"),
    (with_zero, "tril triu diag diag_embed diagflat block_diag Trilu"),
    (any_of(0, 1), "slice_scatter select_scatter"),
    (any_of(0, 2), "constant_pad_nd index_put Pad ScatterElements ScatterND"),
    (any_of(0, 3), "pad scatter index_copy index_fill"),
    (chosen, "where Where"),
    (filled, "masked_fill"),
    (lambda args: negative(args.of(0)), "neg negative Neg"),
    (magnitude, "abs absolute Abs"),
    (relu, "relu Relu"),
    (maximum, "maximum fmax Max"),
    (minimum, "minimum fmin Min"),
    (clamp, "clamp clip hardtanh Clip"),
    (lambda args: clamped(args.of(0), args.of(1), None, args.unit), "clamp_min"),
    (lambda args: clamped(args.of(0), None, args.of(1), args.unit), "clamp_max"),
    (lambda args: clamped(args.of(0), ZERO, replace(ONE, low=6.0, high=6.0), args.unit),
     "relu6"),
)  # fmt: skip
"""Ops whose result has numbers of their operands, so storing it rounds nothing more."""

TABLE: Mapping[str, Row] = _rows(
    (cast, "cast"),
    (cast_exactly, "cast_exactly"),
    (given, "given"),
    (held, "held"),
    (constant(0.0, 0.0, True), "zeros zeros_like new_zeros"),
    (constant(1.0, 1.0, True), "ones ones_like new_ones"),
    (constant(0.0, 1.0, True), "eye one_hot EyeLike"),
    (constant(0.0, 1.0), "rand rand_like hann_window hamming_window bartlett_window"),
    (lambda args: args.of(1), "full full_like"),
    (lambda args: args.of(2), "new_full"),
    (counted, "arange range Range"),
    (lambda args: given(Args(args.operands[:2], 0, args.unit)), "linspace"),
    (scaled_add(1.0), "add Add"),
    (scaled_add(-1.0), "sub subtract Sub"),
    (difference_from, "rsub"),
    (lambda args: product(args.of(0), args.of(1)), "mul multiply Mul"),
    (quotient, "div divide true_divide Div"),
    (summed, "sum cumsum ReduceSum CumSum"),
    (mean, "mean ReduceMean"),
    (square, "square"),
    (power, "pow Pow"),
    (root, "sqrt Sqrt"),
    (exponential, "exp exp2 expm1 Exp"),
    (wave, "sin cos Sin Cos"),
    (between(-1.0, 1.0, 0.45), "tanh Tanh"),
    (between(0.0, 1.0, 0.23), "sigmoid special_expit Sigmoid"),
    (between(0.0, 1.0, 0.5), "hardsigmoid"),
    (between(-1.0, 1.0, 0.49, 1.13), "erf special_erf Erf"),
    (between(-1.0, 1.0, 0.25), "Softsign"),
    (between(-1.5708, 1.5708, 0.5), "atan arctan Atan"),
    (with_dip(-0.18, 1.13), "gelu Gelu"),
    (with_dip(-0.28, 1.1), "silu"),
    (softmax, "softmax _softmax special_softmax"),
    (normed, "layer_norm rms_norm"),
    (dropped, "dropout"),
    (stepped(math.floor), "floor Floor"),
    (stepped(math.ceil), "ceil Ceil"),
    (stepped(round), "round special_round Round"),
    (stepped(math.trunc), "trunc fix"),
    (stepped(lambda x: math.copysign(1.0, x) if x else 0.0), "sign Sign"),
    (fraction, "frac"),
    (remainder, "remainder"),
    (modulo, "fmod"),
    (floor_divide, "floor_divide"),
    (truth, "eq ne not_equal lt less le less_equal gt greater ge greater_equal isclose signbit "
     "logical_and logical_or logical_not logical_xor any all bernoulli Bernoulli Equal Less "
     "LessOrEqual Greater GreaterOrEqual Not And Or Xor"),
    (position, "argmax argmin argsort ArgMax ArgMin"),
    (layer, "layer"),
)  # fmt: skip
"""Ops that compute their result."""
