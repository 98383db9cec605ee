"""Tools that make 16-bit models from FP32 models, with one signature: ours and its peers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir

from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision

Tool = Callable[[onnx.ModelProto], onnx.ModelProto]


def ours(
    model: onnx.ModelProto, precision: Precision = Precision.FP16, forced: bool = False
) -> onnx.ModelProto:
    """Rewrite by the plan; BF16 is for CUDA, because few BF16 ops load on a CPU.

    Args:
        model: the model to rewrite.
        precision: the 16-bit format.
        forced: every op that ONNX and the target allow becomes 16 bits. Otherwise a single op
            stays FP32, and most cases are one op.
    """
    policy = Policy(precision=precision, half=("*",) if forced else ())
    target = Target.CUDA if precision is Precision.BF16 else Target.ANY
    return ir.to_proto(rewrite(model, policy, target=target).model)


def converter_common(model: onnx.ModelProto) -> onnx.ModelProto:
    """Call `onnxconverter_common`, of the extra ``bench``."""
    from onnxconverter_common import float16

    return _quietly(float16.convert_float_to_float16, model)


def runtime_transformers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Call the converter that comes with ONNX Runtime."""
    from onnxruntime.transformers import float16

    return _quietly(float16.convert_float_to_float16, model)


def runtime_transformers_sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Do the same, and sort the nodes, like the optimizer that contains the converter."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    done = OnnxModel(runtime_transformers(model))
    done.topological_sort()
    return done.model  # type: ignore[no-any-return]


def _quietly(convert: Callable[..., Any], model: onnx.ModelProto) -> onnx.ModelProto:
    own = onnx.ModelProto()
    own.CopyFrom(model)  # the tools change their argument
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done: onnx.ModelProto = convert(own, keep_io_types=True)
    finally:
        logging.disable(before)
    return done


TOOLS: dict[str, Tool] = {
    "ours": ours,
    "ours, forced": partial(ours, forced=True),
    "onnxconverter-common": converter_common,
    "onnxruntime.transformers": runtime_transformers,
    "the same, sorted": runtime_transformers_sorted,
    "ours, bf16": partial(ours, precision=Precision.BF16),
    "ours, forced, bf16": partial(ours, precision=Precision.BF16, forced=True),
}
IN_BF16 = frozenset(name for name in TOOLS if name.endswith("bf16"))
