"""Bring what PyTorch's exporter gives into shape without changing a number."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from mpcompile.errors import CannotCapture

OPSET = 20
"""FP16 IsInf and Gelu exist from here on, and every runtime since the middle of 2024 knows it."""
IR_VERSION = 10

# Of onnxscript's optimizer what neither takes numbers for others nor joins random masks.
_TIDY = ir.passes.Sequential(
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


def exported(program: torch.export.ExportedProgram, **options: Any) -> ir.Model:
    """Return an exported program as a valid ONNX model.

    The exporter's own optimizer is left out: it takes a number below 1e-8 for 0, so that an
    optimizer's epsilon of 1e-10 is gone and 0/0 is NaN.

    Args:
        program: what to translate.
        options: of ``torch.onnx.export``.

    Raises:
        CannotCapture: an op has no translation.
    """
    try:
        with _quiet():
            found = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=OPSET,
                **options,
            )
    except torch.onnx.OnnxExporterError as error:
        raise CannotCapture(
            f"an op of the program has no place in ONNX ({_cause(error)})",
            fix="replace it in the model",
        ) from error
    assert found is not None
    model = found.model
    model.ir_version = IR_VERSION
    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    _TIDY(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the exporter says of packages it would like to have."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check(model: ir.Model, where: str | None = None) -> None:
    """Raise CannotCapture if a model of less than 1 GB is not valid.

    Args:
        model: what an exporter made.
        where: the user's place for error messages.
    """
    if sum(_bytes(list(graph.initializers.values())) for graph in model.graphs()) >= 1 << 30:
        return
    try:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = " ".join(str(error).split())[:200].rstrip(".")
        raise CannotCapture(
            f"PyTorch's exporter makes an invalid graph of this model ({line})",
            where,
            "replace that layer in the model",
        ) from error


def _bytes(values: Sequence[ir.Value]) -> int:
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _cause(error: BaseException) -> str:
    """Return what an exporter's chain of errors began with, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".")
