"""Run an ONNX model of any size in ONNX Runtime, without its log messages."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from mpcompile.errors import BadInput
from mpcompile.onnx_graph.gate import write_model

Array = NDArray[np.generic]
Output = Array | list[Any] | None
"""The runtime's result: a tensor, a sequence, or None for an empty optional."""

CPU = ("CPUExecutionProvider",)
LONGEST_RUN = 600.0
"""Seconds until a run is stopped: a loop in an untrusted model may never end."""
_QUIET = 4
_IN_ONE_FILE = 1 << 26  # bytes of weights; more would be in memory twice while they are written


@contextmanager
def session_of(
    model: ir.Model,
    outputs: Sequence[ir.Value] = (),
    optimized: Path | None = None,
    as_written: bool = False,
) -> Iterator[onnxruntime.InferenceSession]:
    """Yield a session on the CPU.

    Args:
        model: the model; it is not changed.
        outputs: values of its graph to return as well.
        optimized: the file to which the runtime must write the graph that it executes.
        as_written: run the graph without the runtime's optimizer. The optimizer drops casts that
            lose nothing, and then, in 1.31, does not find a value that a branch in a loop reads.

    Raises:
        BadInput: the runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        apart = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{apart}file_name", "weights")
        options.add_session_config_entry(f"{apart}min_size_in_bytes", "1024")
    there = list(model.graph.outputs)
    model.graph.outputs.extend(value for value in outputs if value not in there)
    try:
        with tempfile.TemporaryDirectory(prefix="mpcompile-") as folder:
            file = Path(folder) / "model.onnx"
            write_model(model, file, external_above=_IN_ONE_FILE)
            try:
                session = onnxruntime.InferenceSession(str(file), options, providers=list(CPU))
            except Exception as error:  # the runtime's own exceptions share no base class
                raise BadInput(f"ONNX Runtime refuses the model ({_first_line(error)})") from error
            yield session
    finally:
        model.graph.outputs.clear()
        model.graph.outputs.extend(there)


def fault_of(model: ir.Model) -> str:
    """Return the complaint of ONNX's checker and strict shape inference about a model, or ""."""
    with tempfile.TemporaryDirectory(prefix="mpcompile-") as folder:
        file = Path(folder) / "model.onnx"
        write_model(model, file, external_above=_IN_ONE_FILE)
        try:
            onnx.checker.check_model(str(file), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return _first_line(error)
    return ""


def run(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], limit: float = LONGEST_RUN
) -> dict[str, Output]:
    """Run a model once; return its outputs by name.

    Args:
        session: the model.
        inputs: arrays by name.
        limit: seconds until the run is stopped.

    Raises:
        BadInput: the runtime fails.
    """
    known = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    options = onnxruntime.RunOptions()
    options.log_severity_level = _QUIET
    end = threading.Timer(limit, setattr, (options, "terminate", True))
    end.daemon = True
    end.start()
    try:
        values = session.run(names, {k: v for k, v in inputs.items() if k in known}, options)
    except Exception as error:
        raise BadInput(f"the model does not run ({_first_line(error)})") from error
    finally:
        end.cancel()
    return dict(zip(names, values, strict=True))


def given_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Return the inputs a caller must give, by name."""
    graph = model.graph
    return {str(v.name): v for v in graph.inputs if v.name not in graph.initializers}


def in_input_dtypes(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return FP32 inputs in 16 bits if the model takes them so; others unchanged.

    Numbers beyond FP16's range become infinite, as in any use of such a model.
    """
    taken = {
        name: value.dtype.numpy()
        for name, value in given_inputs(model).items()
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    }
    with np.errstate(over="ignore"):
        return {name: array.astype(taken.get(name, array.dtype)) for name, array in inputs.items()}


def input_types(
    model: ir.Model,
) -> dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]:
    """Return dtype and shape of each input that a caller must give; None is an open dimension.

    Raises:
        BadInput: an input is not a tensor of a known shape.
    """
    types = {}
    for name, value in given_inputs(model).items():
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            raise BadInput(f"the input {name} has no known shape", fix="leave out --data")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        types[name] = (value.type.dtype.numpy(), shape)
    return types


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300].rstrip(". ")
