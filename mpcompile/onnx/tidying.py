"""Clean up the graphs of PyTorch's exporter without changing a number."""

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
"""FP16 IsInf and Gelu exist since this opset, and all runtimes since the middle of 2024 know it."""
IR_VERSION = 10

# Only those passes of onnxscript's optimizer that keep numbers exact and join no random masks.
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

    The exporter's own optimizer is not used: it treats a number below 1e-8 as 0, so an optimizer's
    epsilon of 1e-10 is lost and 0/0 is NaN.

    Args:
        program: the program to translate.
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
            f"an op of the program has no equivalent in ONNX ({_cause(error)})",
            fix="replace that op in the model",
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
    """Suppress the exporter's messages about optional packages."""
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
        model: a model made by an exporter.
        where: the user's source position, for messages.
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
    """Return the first error in an exporter's chain of errors, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".")
