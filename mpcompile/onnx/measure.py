"""Measure the ranges of an ONNX model's tensors, by running it in FP32 on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from mpcompile.errors import BadInput
from mpcompile.numerics.calibration import range_of
from mpcompile.onnx.narrowing import OnnxNarrowings
from mpcompile.onnx.rewrite import given_model, prepare
from mpcompile.onnx.sessions import Array, Output, run, session_of
from mpcompile.onnx_graph.constants import mask_constants
from mpcompile.onnx_graph.kernels import Target
from mpcompile.onnx_graph.values import constant_of, is_full, set_constant
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.plan.ranges import Range, Ranges, tensors_of
from mpcompile.precision import Precision

_MASK = -1024.0
"""The value of masks during the measurement: it masks, and is far from every limit."""


def calibrate(
    model: ir.Model | onnx.ModelProto | str | Path, batches: Iterable[Mapping[str, Array]]
) -> Ranges:
    """Measure the FP32 tensors of a model, except those inside branches and loops.

    Args:
        model: as for `mpcompile.onnx.rewrite`.
        batches: inputs by name, for example from `mpcompile.onnx.batches.read_batches`.

    Raises:
        BadInput: the model does not run on a batch, or there is no batch.
    """
    prepared = prepare(given_model(model), FULL_PRECISION, Precision.FP16, Target.ANY)
    graph, ids = prepared.model.graph, prepared.nest.values
    made = [value for node in graph for value in node.outputs if is_full(value)]
    names = {str(v.name): ids[v] for v in (*made, *graph.inputs) if is_full(v)}
    values: dict[str, Range] = {}

    def note(name: str, array: Array) -> None:
        found = range_of(torch.from_numpy(np.array(array, np.float32)))
        values[name] = values[name].joined(found) if name in values else found

    # The exact number of a mask is not measured: any number that masks has the same effect.
    for mask in mask_constants(prepared.nest):
        tensor = constant_of(mask)
        assert tensor is not None
        set_constant(mask, ir.tensor(np.maximum(tensor.numpy(), np.float32(_MASK))))
    done = 0
    narrowings = OnnxNarrowings(prepared.nest, graph.opset_imports.get("", 1))
    outputs = list(dict.fromkeys((*made, *narrowings.needed)))
    with session_of(prepared.model, outputs) as session:
        for batch in batches:
            results: dict[str, Output] = {**batch, **run(session, batch)}
            narrowings.measure(results)
            for name, array in results.items():
                if name in names and isinstance(array, np.ndarray):
                    note(names[name], array)
            done += 1
    if not done:
        raise BadInput("the data holds no batch", fix="give at least one")
    for value, name in ids.items():
        tensor = constant_of(value)
        if tensor is not None:
            note(name, tensor.numpy())
    fingerprint = tensors_of(prepared.flow)
    return Ranges(fingerprint, done, values, narrowings=narrowings.found)
