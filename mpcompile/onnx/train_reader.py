"""Read a training step's untrusted files, and check that they fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

import onnx_ir as ir

from mpcompile.errors import BadInput
from mpcompile.onnx.device_memory import Array, dtype_of
from mpcompile.onnx.train_file import TensorSpec, TrainFile, read_train_file
from mpcompile.onnx.train_state import read_state
from mpcompile.onnx_graph.external_data import DataFolder
from mpcompile.onnx_graph.gate import read_model
from mpcompile.validation import short

_AGAIN = "write it again with `mpcompile export`"


def read_train_step(path: Path) -> tuple[TrainFile, ir.Model, dict[str, Array]]:
    """Return the description of a training step, its graph, and its first state.

    Args:
        path: path of ``train.onnx``; ``train.json`` and the weights are in the same folder.

    Raises:
        BadInput: one of the three is missing or damaged, or names, dtypes and shapes differ.
    """
    where = str(path)
    description = path.with_suffix(".json")
    model = read_model(path)
    file = read_train_file(description)
    _check_file(file, str(description))
    _check_graph(model, file, where)
    DataFolder(path.parent, str(description)).check_file(file.weights, "the state")
    return file, model, read_state(path.parent / file.weights, file.state)


def loss_spec(file: TrainFile) -> TensorSpec:
    """Return the spec of the unscaled loss in the graph: 0-d FP32."""
    return TensorSpec(file.loss, "float32", ())


def _check_file(file: TrainFile, where: str) -> None:
    """Raise BadInput if a description contradicts itself."""
    given = [spec.name for spec in (*file.batch, *file.state)] + [rate.name for rate in file.rates]
    made = [file.loss, *(slot.next for slot in file.state if slot.next)]
    groups = [f"group {rate.group}" for rate in file.rates]
    for names in (given, made, groups, [piece.name for piece in file.pieces]):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise BadInput(f"{short(twice[0])} is listed twice", where, _AGAIN)
    slots = {slot.name: slot for slot in file.state}
    for piece in file.pieces:
        slot = slots.get(piece.slot)
        if slot is None or piece.start + prod(piece.shape) > prod(slot.shape):
            what = f"{short(piece.name)} does not fit into {short(piece.slot)}"
            raise BadInput(what, where, _AGAIN)


def _check_graph(model: ir.Model, file: TrainFile, where: str) -> None:
    """Raise BadInput if graph and description differ in a name, dtype or shape."""
    graph = model.graph
    rates = [TensorSpec(rate.name, "float64", ()) for rate in file.rates]
    following = [TensorSpec(slot.next, slot.dtype, slot.shape) for slot in file.state if slot.next]
    _check_values("input", graph.inputs, [*file.batch, *file.state, *rates], where)
    _check_values("output", graph.outputs, [loss_spec(file), *following], where)


def _check_values(
    kind: str, values: Sequence[ir.Value], specs: Sequence[TensorSpec], where: str
) -> None:
    there = {str(value.name): value for value in values}
    wanted = {spec.name: spec for spec in specs}
    for what, names in (
        (f"the graph has no {kind}", wanted.keys() - there.keys()),
        (f"train.json describes no {kind}", there.keys() - wanted.keys()),
    ):
        if names:
            raise BadInput(f"{what} {short(min(names))}", where, _AGAIN)
    for name, spec in wanted.items():
        value = there[name]
        dtype = ir.DataType.from_numpy(dtype_of(spec))
        shape = None if value.shape is None else tuple(value.shape)
        if value.dtype is not dtype or shape != spec.shape:
            found = f"{value.dtype}{'' if shape is None else list(map(str, shape))}"
            what = f"{kind} {short(name)} is {found}, not {spec.dtype}{list(spec.shape)}"
            raise BadInput(what, where, _AGAIN)
