"""A view in Model Explorer's format: the graph, and overlays that colour it.

``model-explorer graph.json --node_data_paths precision.json,casts.json`` shows both. The format is
that of its ``graph_builder.py`` and ``node_data_builder.py`` (version 0.1.34).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import log2
from typing import Any

from mpcompile.plan.ranges import Range, Ranges
from mpcompile.precision import Precision
from mpcompile.show.tables import cast_bytes
from mpcompile.show.view import View, ViewNode

_GRAPH = "graph"
_COLORS = {
    "f16": "#8fd3a8",
    "bf16": "#8fd3a8",
    "f32": "#9cc3f0",
    "both": "#f2d479",
    "other": "#d9d9d9",
}
_SAFE, _DANGER = "#ffffff", "#e4572e"


def model_explorer_files(
    view: View, ranges: Ranges | None = None, errors: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return the files of a view by name: ``graph.json`` and its overlays.

    Args:
        view: the graph to show.
        ranges: measured ranges; they add ``abs_max.json`` and ``headroom_bits.json``.
        errors: each node's error against a reference; they add ``error.json``.
    """
    files = {
        "graph.json": {"label": view.source, "graphs": [_graph(view)]},
        "precision.json": _texts("precision", _precisions(view)),
        "casts.json": _numbers("bytes of a cast", _casts(view)),
    }
    if ranges is not None:
        held = {node.id: ranges.values[_planned(node)] for node in view.nodes if _has(ranges, node)}
        files["abs_max.json"] = _numbers("largest magnitude", _largest(held))
        files["headroom_bits.json"] = _numbers("bits to overflow", _headroom(held), reverse=True)
    if errors is not None:
        there = {name: error for name, error in errors.items() if name in view.by_id}
        files["error.json"] = _numbers("error", there)
    return {name: json.dumps(document) for name, document in files.items()}


def _graph(view: View) -> dict[str, Any]:
    return {"id": _GRAPH, "nodes": [_node(node) for node in view.nodes]}


def _node(node: ViewNode) -> dict[str, Any]:
    said = {
        "precision": node.precision,
        "computes": node.computes,
        "stored": node.stored,
        "bytes": f"{node.bytes:,}",
        "why": node.reason,
        "rule": node.rule,
        "module": node.where.module,
        "source": f"{node.where.file}:{node.where.line}" if node.where.file else "",
    }
    return {
        "id": node.id,
        "label": node.op,
        "namespace": _namespace(node),
        "attrs": [{"key": key, "value": value} for key, value in said.items() if value],
        "incomingEdges": [
            {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(index)}
            for index, name in enumerate(node.reads)
        ],
        "outputsMetadata": [{"id": "0", "attrs": [{"key": "shape", "value": node.type}]}],
        "style": {"backgroundColor": _COLORS[node.precision]},
    }


def _namespace(node: ViewNode) -> str:
    """Return the stage and the module path as the layers to unfold."""
    parts = [part.replace("/", "_") for part in node.where.module.split(".") if part]
    return "/".join([node.stage, *parts])


def _texts(name: str, values: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    results = {id: {"value": text, "bgColor": color} for id, (text, color) in values.items()}
    return {_GRAPH: {"name": name, "results": results}}


def _numbers(name: str, values: Mapping[str, float], reverse: bool = False) -> dict[str, Any]:
    colors = (_DANGER, _SAFE) if reverse else (_SAFE, _DANGER)
    return {
        _GRAPH: {
            "name": name,
            "results": {id: {"value": value} for id, value in values.items()},
            "gradient": [{"stop": stop, "bgColor": color} for stop, color in enumerate(colors)],
        }
    }


def _precisions(view: View) -> dict[str, tuple[str, str]]:
    return {node.id: (node.precision, _COLORS[node.precision]) for node in view.nodes}


def _casts(view: View) -> dict[str, float]:
    return {node.id: cast_bytes(node) for node in view.nodes if node.role == "cast"}


def _planned(node: ViewNode) -> str:
    return node.planned or node.id


def _has(ranges: Ranges, node: ViewNode) -> bool:
    """Whether a node's result was measured; results of backward are not measured by node."""
    return node.stage == "forward" and node.role == "op" and _planned(node) in ranges.values


def _largest(held: Mapping[str, Range]) -> dict[str, float]:
    return {name: item.largest_finite for name, item in held.items()}


def _headroom(held: Mapping[str, Range]) -> dict[str, float]:
    most = Precision.FP16.largest
    return {
        name: round(log2(most / item.largest_finite), 2)
        for name, item in held.items()
        if item.largest_finite
    }
