"""Which inputs and outputs of an ONNX op share a type, by its schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import onnx
from onnx.defs import OpSchema

from mpcompile.precision import Precision

_TYPES = {
    Precision.FP16: "tensor(float16)",
    Precision.BF16: "tensor(bfloat16)",
    Precision.FP32: "tensor(float)",
}
_AS_ONE = {
    "Attention": ("T1", "T2", "U"),
    "BatchNormalization": ("T", "T1", "T2", "U"),
    "RMSNormalization": ("V", "T"),
    "LinearAttention": ("T", "S"),
}
"""Variables that may differ in ONNX, but not in ONNX Runtime's kernels or ONNX's inference."""

_CHOOSE = frozenset({"dtype", "to", "output_datatype"})
"""Attributes that set the type of the output."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The types of an op's inputs and outputs.

    Attributes:
        inputs: per formal input its type variable, or its only type.
        outputs: the same for its outputs.
        variadic: whether the last formal input may be given any number of times.
        many: the same for the last formal output.
        mixed: variables whose tensors may differ in type, such as the state of a loop.
        allowed: per variable its allowed types.
        chosen: whether an attribute sets the type of the output.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variadic: bool
    many: bool
    mixed: frozenset[str]
    allowed: dict[str, frozenset[str]]
    chosen: bool

    def input(self, index: int) -> str:
        """Return the type variable of an input, or "" if there is no such input."""
        return _at(self.inputs, index, self.variadic)

    def output(self, index: int) -> str:
        """Return the type variable of an output, or "" if there is no such output."""
        return _at(self.outputs, index, self.many)

    def takes(self, variable: str, precision: Precision) -> bool:
        """Return whether all tensors of a type variable may have a format together."""
        return variable not in self.mixed and self.holds(variable, precision)

    def holds(self, variable: str, precision: Precision) -> bool:
        """Return whether a tensor of a type variable may have a format."""
        return _TYPES[precision] in self.allowed.get(variable, frozenset())


@cache
def signature(op_type: str, domain: str, opset: int) -> Signature | None:
    """Return the signature of an op in a version of its op set, or None if ONNX knows no such op.

    Args:
        op_type: the op type, such as ``"Conv"``.
        domain: ``""`` is the domain of ONNX itself.
        opset: the version that the model imports.
    """
    try:
        schema = onnx.defs.get_schema(op_type, opset, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    parameters = [*schema.inputs, *schema.outputs]
    first, *others = _AS_ONE.get(op_type, ("",))
    names = dict.fromkeys(others, first)
    return Signature(
        inputs=tuple(names.get(item.type_str, item.type_str) for item in schema.inputs),
        outputs=tuple(names.get(item.type_str, item.type_str) for item in schema.outputs),
        variadic=_is_variadic(schema.inputs),
        many=_is_variadic(schema.outputs),
        mixed=frozenset(item.type_str for item in parameters if not item.is_homogeneous),
        allowed={c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
        chosen=not _CHOOSE.isdisjoint(schema.attributes),
    )


def _is_variadic(parameters: Sequence[OpSchema.FormalParameter]) -> bool:
    return bool(parameters) and parameters[-1].option == OpSchema.FormalParameterOption.Variadic


def _at(variables: tuple[str, ...], index: int, open_ended: bool) -> str:
    if index < len(variables):
        return variables[index]
    return variables[-1] if open_ended else ""
