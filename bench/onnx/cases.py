"""The models with which the onnx package tests runtimes, and their tensors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "light", "simple", "pytorch-converted", "pytorch-operator")
"""Node cases are made by the package's code; light ones are known networks without weights."""


@dataclass(frozen=True)
class Case:
    """A model with inputs and the right outputs.

    Attributes:
        name: ``node/test_relu``.
        model: the model.
        sets: inputs and outputs by position: arrays, lists of them, or None.
    """

    name: str
    model: onnx.ModelProto
    sets: tuple[tuple[list[Any], list[Any]], ...]


@cache
def _found(kind: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases divide by zero on purpose
        cases = load_model_tests(kind="real" if kind == "light" else kind)
    return {f"{kind}/{case.name}": case for case in cases}


def names() -> list[str]:
    """Return the name of every case, sorted within its kind."""
    return [name for kind in KINDS for name in sorted(_found(kind))]


def case_of(name: str) -> Case:
    """Return a case by its name."""
    kind = name.partition("/")[0]
    found = _found(kind)[name]
    if kind == "node":
        sets = tuple(([*map(_array, x)], [*map(_array, y)]) for x, y in found.data_sets)
        return Case(name, found.model, sets)
    if kind == "light":
        path = Path(onnx.__file__).parent.parent / found.url
        model = onnx.load(path)
        right = onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb"))
        given = [Runner.generate_dummy_data(value) for value in _fed(model)]
        return Case(name, model, ((given, [numpy_helper.to_array(right)]),))
    folder = Path(found.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = tuple(
        (_read(each, "input", _fed(model)), _read(each, "output", list(model.graph.output)))
        for each in sorted(folder.glob("test_data_set_*"))
    )
    return Case(name, model, sets)


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def _read(folder: Path, what: str, values: list[onnx.ValueInfoProto]) -> list[Any]:
    found: list[Any] = []
    for index, value in enumerate(values):
        data = (folder / f"{what}_{index}.pb").read_bytes()
        kind = value.type.WhichOneof("value")
        if kind == "sequence_type":
            found.append(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        elif kind == "optional_type":
            found.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(data)))
        else:
            found.append(numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return found


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def holds_full(model: onnx.ModelProto) -> bool:
    """Return whether an input, weight, intermediate or output of a model is FP32."""
    full = onnx.TensorProto.FLOAT
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if any(_element(value.type) == full for value in values):
        return True
    return any(tensor.data_type == full for tensor in model.graph.initializer) or any(
        attribute.t.data_type == full for node in model.graph.node for attribute in node.attribute
    )


def _element(kind: onnx.TypeProto) -> int:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _element(getattr(kind, which).elem_type)
    return int(kind.tensor_type.elem_type) if which == "tensor_type" else 0
