"""The text form of graphs, for people and for golden tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import fx

from mpcompile.program.marks import SLOT, SLOTS, WHERE
from mpcompile.torch_private.ops import op_name

_SHORT = {
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "int64": "i64",
    "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "b8",
    "complex64": "c64", "complex128": "c128",
}  # fmt: skip


def type_text(value: object) -> str:
    """Write a value's type: ``f32[8,32]`` for a tensor, the Python type's name otherwise."""
    if isinstance(value, torch.Tensor):
        return f"{_dtype_text(value.dtype)}[{','.join(str(size) for size in value.shape)}]"
    if isinstance(value, list | tuple):
        return "tuple"
    if isinstance(value, torch.SymFloat | float):
        return "number"
    return type(value).__name__ if value is not None else "?"


@cache
def _dtype_text(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return _SHORT.get(name, name)


def graph_text(graph: fx.Graph, positions: bool = False) -> str:
    """Write a graph, one line per node: name, type, op and arguments.

    The inner graphs follow, each under its name.

    Args:
        graph: any FX graph whose nodes carry ``meta["val"]``.
        positions: whether to add the module path and source line of each node's mark `WHERE`.
    """
    return "\n".join(_parts(graph, "", positions, set()))


def _parts(
    graph: fx.Graph, prefix: str, positions: bool, written: set[fx.GraphModule]
) -> Iterator[str]:
    yield _one_graph(graph, positions)
    for node in graph.find_nodes(op="get_attr"):
        inner = getattr(graph.owning_module, str(node.target), None)
        if isinstance(inner, fx.GraphModule) and inner not in written:
            written.add(inner)
            yield f"\n{prefix}{node.target}"
            yield from _parts(inner.graph, f"{prefix}{node.target}.", positions, written)


def _one_graph(graph: fx.Graph, positions: bool) -> str:
    rows: list[tuple[str, str, str, str]] = []
    for node in graph.nodes:
        if node.op == "output":
            names = SLOTS.get(node) or [""] * len(_flat(node.args[0]))
            rows += [
                ("return", "", _argument(value) if not name else f"{name} = {_argument(value)}", "")
                for name, value in zip(names, _flat(node.args[0]), strict=True)
            ]
            continue
        what = (
            f"input {SLOT.get(node, '')}".rstrip()
            if node.op == "placeholder"
            else " ".join([op_name(node), *_arguments(node)])
        )
        position = str(WHERE.get(node, "")) if positions else ""
        rows.append((node.name, type_text(node.meta.get("val")), what, position))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
        for row in rows
    )


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _arguments(node: fx.Node) -> list[str]:
    return [_argument(value) for value in node.args] + [
        f"{key}={_argument(value)}"
        for key, value in node.kwargs.items()
        if key not in ("device", "pin_memory", "layout") and value is not None
    ]


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, list | tuple):
        return f"[{','.join(_argument(item) for item in value)}]"
    if isinstance(value, torch.dtype | torch.memory_format):
        name = str(value).removeprefix("torch.")
        return _SHORT.get(name, name)
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
