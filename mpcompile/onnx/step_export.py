"""Write a whole training step as one ONNX graph, for the stock ONNX Runtime."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors.torch import save_file

from mpcompile.artifacts import check_file, write_file
from mpcompile.errors import BadInput
from mpcompile.onnx.first_state import first_seed, first_state, pieces
from mpcompile.onnx.plain_graph import SEED, PlainStep, plain_step
from mpcompile.onnx.tidying import check, exported
from mpcompile.onnx.train_file import Rate, StateSlot, TensorSpec, TrainFile
from mpcompile.onnx_graph.gate import write_model
from mpcompile.step.slots import Role, Slot
from mpcompile.step.transformed import Transformed


def export_step(transformed: Transformed, path: Path, force: bool = False) -> TrainFile:
    """Write ``path`` (``train.onnx``), and next to it ``train.json`` and ``train.safetensors``.

    The graph is a pure function. Its inputs are state, learning rates (0-d FP64) and the batch; its
    outputs are the unscaled loss (0-d FP32) and the next state. All ops are standard ONNX.

    Args:
        transformed: a workload with a loss; neither its model nor its optimizer is changed.
        path: path of the ONNX file.
        force: whether existing files may be replaced.

    Raises:
        BadInput: the workload has no loss, or a file exists and ``force`` is False.
        CannotCapture: an op of the step cannot be expressed in ONNX.
    """
    if transformed.step is None:
        origin = transformed.workload.origin
        raise BadInput(
            "the workload has no loss and no optimizer",
            origin,
            "export the forward pass with --kind forward",
        )
    description, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    for file in (path, description, weights):
        check_file(file, force)
    plain = plain_step(transformed.step)
    model = to_onnx(plain)
    state = first_state(transformed, plain.inputs)
    if plain.draws:
        state[SEED] = first_seed()
    document = _describe(transformed, plain, weights.name)
    write_model(model, path, force)
    _write_tensors(state, weights)
    write_file(description, document.to_json() + "\n", force)
    return document


def to_onnx(plain: PlainStep) -> ir.Model:
    """Return a plain step as an ONNX model: inputs named by slot, outputs ``next.SLOT``.

    Raises:
        CannotCapture: an op has no translation.
    """
    names = [slot.name for slot in plain.inputs] + ([SEED] if plain.draws else [])
    nodes = plain.module.graph.find_nodes(op="placeholder")
    example = tuple(torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype) for n in nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(plain.module, example, strict=False)
    results = ["loss", *(f"next.{name}" for name in plain.results)]
    model = exported(program, input_names=names, output_names=results)
    check(model)
    return model


def _describe(transformed: Transformed, plain: PlainStep, weights: str) -> TrainFile:
    written = set(plain.results)
    state = [
        StateSlot(
            **_spec(slot), role=slot.role.value, next=f"next.{slot.name}" * (slot.name in written)
        )
        for slot in plain.inputs
        if slot.role not in (Role.BATCH, Role.HYPER)
    ]
    if plain.draws:
        state.append(StateSlot(SEED, "int64", (), "seed", f"next.{SEED}"))
    optimizer = transformed.workload.optimizer
    assert optimizer is not None
    rates = []
    for slot in plain.inputs:
        if slot.role is Role.HYPER:
            group = int(slot.name.removeprefix("group").removesuffix(".lr"))
            rates.append(Rate(slot.name, group, float(optimizer.param_groups[group]["lr"])))
    batch = [TensorSpec(**_spec(slot)) for slot in plain.inputs if slot.role is Role.BATCH]
    batch.sort(key=lambda spec: int(spec.name.removeprefix("batch.")))
    found = pieces(transformed, plain.inputs)
    return TrainFile(weights, tuple(batch), "loss", tuple(state), tuple(rates), found)


def _spec(slot: Slot) -> dict[str, Any]:
    dtype = str(slot.dtype).removeprefix("torch.")
    return {"name": slot.name, "dtype": dtype, "shape": tuple(slot.shape)}


def _write_tensors(state: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors into a file, which gets its name only when it is complete."""
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.resolve().parent) as folder:
        fresh = Path(folder) / file.name
        save_file({name: value.contiguous() for name, value in state.items()}, fresh)
        fresh.chmod(0o644)  # the library makes files that only the owner can read
        fresh.replace(file)
