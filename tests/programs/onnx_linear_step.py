"""A training step of one linear layer as ONNX files, written node by node.

SGD with momentum, an FP16 working copy, a dynamic loss scale, and a gate by Where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from mpcompile.onnx.train_file import Piece, Rate, StateSlot, TensorSpec, TrainFile

ROWS, WIDTH = 8, 4
MOMENTUM, INTERVAL = 0.9, 3
KINDS = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
}


def slots(half: str) -> tuple[StateSlot, ...]:
    rows: list[Any] = [
        ("arena0.master", "float32", (32,), "master"),
        ("arena0.working", half, (WIDTH,), "working"),
        ("arena0.momentum_buffer", "float32", (32,), "optimizer"),
        ("arena0.step", "float32", (1,), "optimizer"),
        ("loss_scale", "float32", (), "scale"),
        ("growth_tracker", "int32", (), "tracker"),
        ("steps_taken", "int32", (), "counter"),
        ("steps_skipped", "int32", (), "counter"),
    ]
    written = tuple(StateSlot(n, d, s, r, f"{n}.next") for n, d, s, r in rows)
    return (*written, StateSlot("offset", "float32", (1,), "constant", ""))


def first_state(half: str, scale: float) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    master = np.zeros(32, np.float32)
    master[:WIDTH] = weight
    dtype = ml_dtypes.bfloat16 if half == "bfloat16" else half
    return {
        "arena0.master": master,
        "arena0.working": weight.astype(dtype),
        "arena0.momentum_buffer": np.zeros(32, np.float32),
        "arena0.step": np.zeros(1, np.float32),
        "loss_scale": np.array(scale, np.float32),
        "growth_tracker": np.array(0, np.int32),
        "steps_taken": np.array(0, np.int32),
        "steps_skipped": np.array(0, np.int32),
        "offset": np.array([0.5], np.float32),
    }


def description(half: str) -> TrainFile:
    return TrainFile(
        weights="train.safetensors",
        batch=(TensorSpec("x", "float32", (ROWS, WIDTH)), TensorSpec("y", "float32", (ROWS,))),
        loss="loss",
        state=slots(half),
        rates=(Rate("group0.lr", 0, 0.05),),
        pieces=(
            Piece("weight", "arena0.master", 0, (1, WIDTH)),
            Piece("weight::momentum_buffer", "arena0.momentum_buffer", 0, (1, WIDTH)),
            Piece("weight::step", "arena0.step", 0, ()),
            Piece("offset", "offset", 0, (1,)),
        ),
    )


def model(half: str) -> onnx.ModelProto:
    """Return the graph; each op has one role in the step."""
    nodes, constants = [], []

    def add(op: str, *inputs: str, to: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [to], **attributes))
        return to

    def number(name: str, value: Any, kind: int = TensorProto.FLOAT) -> str:
        shape = np.shape(value)
        constants.append(helper.make_tensor(name, kind, shape, np.ravel(value).tolist()))
        return name

    sixteen = KINDS[half]
    add("Cast", "x", to="x16", to_=sixteen)
    add("MatMul", "x16", "arena0.working", to="wx16")
    add("Cast", "wx16", to="wx", to_=TensorProto.FLOAT)
    add("Add", "wx", "offset", to="out")
    add("Sub", "out", "y", to="difference")
    add("Mul", "difference", "difference", to="square")
    add("ReduceMean", "square", number("axes", [0], TensorProto.INT64), to="loss", keepdims=0)
    add("Mul", "difference", number("two_nths", 2.0 / ROWS), to="plain_seed")
    add("Mul", "plain_seed", "loss_scale", to="seed")
    add("Cast", "seed", to="seed16", to_=sixteen)
    add("MatMul", "seed16", "x16", to="gradient16")
    add("Cast", "gradient16", to="scaled", to_=TensorProto.FLOAT)
    add("Div", "scaled", "loss_scale", to="gradient")
    add("Abs", "gradient", to="size")
    add("ReduceMax", "size", "axes", to="largest", keepdims=0)
    add("Less", "largest", number("infinity", float("inf")), to="finite")
    add("Pad", "gradient", number("pads", [0, 32 - WIDTH], TensorProto.INT64), to="padded")
    add("Mul", "arena0.momentum_buffer", number("momentum", MOMENTUM), to="slowed")
    add("Add", "slowed", "padded", to="moved")
    add("Cast", "group0.lr", to="rate", to_=TensorProto.FLOAT)
    add("Mul", "moved", "rate", to="change")
    add("Sub", "arena0.master", "change", to="new_master")
    add("Slice", "new_master", number("zero1", [0], TensorProto.INT64),
        number("width1", [WIDTH], TensorProto.INT64), to="new_weight")  # fmt: skip
    add("Cast", "new_weight", to="new_working", to_=sixteen)
    add("Add", "arena0.step", number("one_f", [1.0]), to="new_step")
    add("Add", "growth_tracker", number("one", 1, TensorProto.INT32), to="more")
    add("Equal", "more", number("interval", INTERVAL, TensorProto.INT32), to="grows")
    add("Mul", "loss_scale", number("two", 2.0), to="grown")
    add("Mul", "loss_scale", number("half_f", 0.5), to="shrunk")
    add("Where", "grows", "grown", "loss_scale", to="clean_scale")
    add("Where", "grows", number("zero", 0, TensorProto.INT32), "more", to="clean_tracker")
    add("Add", "steps_taken", "one", to="one_taken")
    add("Add", "steps_skipped", "one", to="one_skipped")
    for name, good, bad in [
        ("arena0.master", "new_master", "arena0.master"),
        ("arena0.working", "new_working", "arena0.working"),
        ("arena0.momentum_buffer", "moved", "arena0.momentum_buffer"),
        ("arena0.step", "new_step", "arena0.step"),
        ("loss_scale", "clean_scale", "shrunk"),
        ("growth_tracker", "clean_tracker", "zero"),
        ("steps_taken", "one_taken", "steps_taken"),
        ("steps_skipped", "steps_skipped", "one_skipped"),
    ]:
        add("Where", "finite", good, bad, to=f"{name}.next")
    for node in nodes:
        for attribute in node.attribute:
            attribute.name = attribute.name.rstrip("_")
    file = description(half)
    rates = [TensorSpec(rate.name, "float64", ()) for rate in file.rates]
    loss = TensorSpec("loss", "float32", ())
    after = [TensorSpec(slot.next, slot.dtype, slot.shape) for slot in file.state if slot.next]
    graph = helper.make_graph(
        nodes, "step", _infos([*file.batch, *file.state, *rates]), _infos([loss, *after]), constants
    )
    opset = [helper.make_opsetid("", 20)]
    made = helper.make_model(graph, ir_version=10, opset_imports=opset)
    onnx.checker.check_model(made, full_check=True)
    return made


def _infos(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(s.name, KINDS[s.dtype], s.shape) for s in specs]


def write(folder: Path, half: str = "float16", scale: float = 1024.0) -> Path:
    """Write the three files; return the path of ``train.onnx``."""
    onnx.save(model(half), folder / "train.onnx")
    (folder / "train.json").write_text(description(half).to_json())
    save_file(first_state(half, scale), folder / "train.safetensors")
    return folder / "train.onnx"


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(1)
    x = random.standard_normal((count, ROWS, WIDTH)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 3.0, 0.5], np.float32) + 0.5).astype(np.float32)
    return list(zip(x, y, strict=True))


def by_hand(
    state: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, rate: float
) -> tuple[np.float32, dict[str, np.ndarray]]:
    """Return loss and next state in NumPy: matmuls sum in FP32, then round."""
    half, wide = state["arena0.working"].dtype, np.float32
    rounded = x.astype(half).astype(wide)
    out = (rounded @ state["arena0.working"].astype(wide)).astype(half).astype(wide)
    difference = out + state["offset"] - y
    loss = np.mean(difference * difference, dtype=wide)
    seed = (difference * wide(2 / ROWS) * state["loss_scale"]).astype(half).astype(wide)
    gradient = (seed @ rounded).astype(half).astype(wide) / state["loss_scale"]
    new: dict[str, Any] = dict(state)
    if not np.isfinite(gradient).all():
        new["loss_scale"] = state["loss_scale"] * wide(0.5)
        new["growth_tracker"] = np.int32(0)
        new["steps_skipped"] = state["steps_skipped"] + np.int32(1)
        return loss, new
    padded = np.pad(gradient, (0, 32 - WIDTH))
    new["arena0.momentum_buffer"] = state["arena0.momentum_buffer"] * wide(MOMENTUM) + padded
    master = state["arena0.master"] - new["arena0.momentum_buffer"] * wide(rate)
    new["arena0.master"] = master
    new["arena0.working"] = master[:WIDTH].astype(half)
    new["arena0.step"] = state["arena0.step"] + wide(1)
    grows = state["growth_tracker"] + 1 == INTERVAL
    new["loss_scale"] = state["loss_scale"] * wide(2) if grows else state["loss_scale"]
    new["growth_tracker"] = np.int32(0) if grows else state["growth_tracker"] + np.int32(1)
    new["steps_taken"] = state["steps_taken"] + np.int32(1)
    return loss, new
