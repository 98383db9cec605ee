"""The kernels that the installed ONNX Runtime registers, as rows of our table.

`get_all_opkernel_def` queries every execution provider that the package was built with, so the
package for CUDA answers on a machine with CUDA only; elsewhere the call ends its process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx.defs import OpSchema

from mpcompile.onnx_graph.signatures import signature
from mpcompile.precision import Precision

LETTERS = {"h": "tensor(float16)", "b": "tensor(bfloat16)", "f": "tensor(float)"}
_OPEN = (1 << 31) - 1
_INTEGERS = {"tensor(int32)", "tensor(int64)"}

Cells = dict[str, dict[int, str]]
"""Per op and version of the op, the formats that a kernel takes, written as in `kernel_table`."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One registered kernel of an op of ONNX itself.

    Attributes:
        provider: the provider, such as ``"CUDAExecutionProvider"``.
        op: the op type.
        first: the first version of the op that it serves.
        last: the last version.
        types: the allowed types per type variable.
    """

    provider: str
    op: str
    first: int
    last: int
    types: dict[str, tuple[str, ...]]

    def serves(self, version: int) -> bool:
        """Return whether it serves a version of the op; without an end it serves its first only."""
        if self.last == _OPEN:
            return version == self.first
        return self.first <= version <= self.last


def registered(_: object = None) -> list[Kernel]:
    """Return all kernels for ops of ONNX itself; this can end the process, see above."""
    # Called in a process of its own.
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    return kernels_of(
        (d.provider, d.domain, d.op_name, d.version_range, d.type_constraints)
        for d in runtime.get_all_opkernel_def()
    )


def kernels_of(rows: Iterable[Any]) -> list[Kernel]:
    """Return kernels from rows of provider, domain, op, versions and types."""
    return [
        Kernel(
            provider,
            op,
            versions[0],
            versions[1],
            {name: tuple(held) for name, held in types.items()},
        )
        for provider, domain, op, versions, types in rows
        if domain == ""
    ]


def cells_of(kernels: Iterable[Kernel], provider: str) -> Cells:
    """Return the formats of a provider's kernels in the form of our table."""
    by_op: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        if kernel.provider == provider:
            by_op[kernel.op].append(kernel)
    found: Cells = {}
    for schema in _schemas():
        main = main_variable(schema)
        if main is None:
            continue
        own = [k for k in by_op[schema.name] if k.serves(schema.since_version)]
        formats = "".join(letter for letter in LETTERS if _takes(own, schema, main, letter))
        if not own and _is_defined(schema):
            formats = f"{_of_body(schema, by_op)}x"
        found.setdefault(schema.name, {})[schema.since_version] = formats or "-"
    return {op: cells for op, each in found.items() if (cells := _without_repeats(each))}


def main_variable(schema: OpSchema) -> str | None:
    """Return the variable of the first output, else input, that may be FP32; None if none."""
    found = signature(schema.name, schema.domain, schema.since_version)
    assert found is not None
    for variable in (*found.outputs, *found.inputs):
        if found.takes(variable, Precision.FP32) or variable == LETTERS["f"]:
            return variable
    return None


def _schemas() -> list[OpSchema]:
    history = onnx.defs.get_all_schemas_with_history()
    own = [schema for schema in history if schema.domain == "" and not schema.deprecated]
    return sorted(own, key=lambda schema: (schema.name, schema.since_version))


def _takes(kernels: list[Kernel], schema: OpSchema, main: str, letter: str) -> bool:
    """Return whether a kernel takes a format for the main variable, and FP32 for the others."""
    found = signature(schema.name, schema.domain, schema.since_version)
    assert found is not None
    names = dict(
        zip(
            (item.type_str for item in (*schema.inputs, *schema.outputs)),
            (*found.inputs, *found.outputs),
            strict=True,
        )
    )
    for kernel in kernels:
        wanted = []
        for constraint in schema.type_constraints:
            name, allowed = constraint.type_param_str, set(constraint.allowed_type_strs)
            if LETTERS["f"] not in allowed:
                continue
            if names.get(name, name) == main:
                wanted.append((name, LETTERS[letter]))
            elif not allowed & _INTEGERS:  # else it is usually an index
                wanted.append((name, LETTERS["f"]))
        if all(kind in kernel.types.get(name, (kind,)) for name, kind in wanted):
            return True
    return False


def _is_defined(schema: Any, without_the_node: bool = False) -> bool:
    """Return whether ONNX defines an op by other ops."""
    return schema.has_function or (schema.has_context_dependent_function and not without_the_node)


def _of_body(schema: OpSchema, by_op: dict[str, list[Kernel]]) -> str:
    """Return the formats that each op of an op's definition has a kernel for."""
    if not _is_defined(schema, without_the_node=True):
        return ""
    body = schema.function_body
    opset = max(
        (each.version for each in body.opset_import if each.domain == ""),
        default=schema.since_version,
    )
    held = set(LETTERS)
    for node in body.node:
        inner = onnx.defs.get_schema(node.op_type, opset)
        main = main_variable(inner)
        if main is None or node.op_type in ("Constant", "CastLike"):
            continue
        own = [k for k in by_op[node.op_type] if k.serves(inner.since_version)]
        held &= {letter for letter in LETTERS if _takes(own, inner, main, letter)}
    return "".join(letter for letter in LETTERS if letter in held)


def _without_repeats(cells: dict[int, str]) -> dict[int, str]:
    kept: dict[int, str] = {}
    last = "-"
    for version, formats in sorted(cells.items()):
        if formats != last:
            kept[version] = last = formats
    return kept


def as_table(providers: dict[str, Cells]) -> str:
    """Return cells as the text of our table: one line per op, one column per provider."""
    lines = []
    for op in sorted(set().union(*providers.values())):
        columns = [
            " ".join(f"{version}:{formats}" for version, formats in cells.get(op, {}).items())
            for cells in providers.values()
        ]
        lines.append(f"{op:26} | {columns[0] or '-':21} | {columns[1] or '-'}")
    return "\n".join(lines)
