"""The rows of a view, and its JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mpcompile.errors import BadInput
from mpcompile.plan.dataflow import Where
from mpcompile.show.view import View, ViewNode, precision_of

NODES = (
    ViewNode("x", "batch", "input", "forward", "f32", "", ("f32",), "f32[2,3]", 24),
    ViewNode(
        "x.f16", "_to_copy", "cast", "forward", "both", "f32", ("f16",), "f16[2,3]", 12, ("x",),
        reason="fc reads it", saved=True, alive=36, where=Where("fc", "model.py", 4),
    ),
    ViewNode("fc", "linear", "op", "forward", "f16", "f16", ("f16",), "f16[2,5]", 20, ("x.f16",)),
)  # fmt: skip
VIEW = View("model.py", "program", "fp16", NODES)


def test_a_view_is_read_back_from_its_json() -> None:
    assert View.from_json(VIEW.to_json()) == VIEW


def test_readers_are_the_nodes_that_read() -> None:
    assert VIEW.readers == {"x": ("x.f16",), "x.f16": ("fc",)}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"version": 9}, "version should be 1, not 9"),
        ({"nodes": [{"id": "x"}]}, "nodes[0].op is missing"),
        ({"more": 1}, "there is no field more"),
    ],
)
def test_a_document_that_is_no_view_is_refused(changed: dict[str, object], sentence: str) -> None:
    document = json.loads(VIEW.to_json()) | changed
    with pytest.raises(BadInput, match="this is not a view") as caught:
        View.from_json(json.dumps(document), "view.json")
    assert sentence in str(caught.value)


def test_nodes_that_do_not_fit_together_are_refused() -> None:
    twice = replace(VIEW, nodes=(NODES[0], NODES[0]))
    with pytest.raises(BadInput, match="two nodes of the view have the same id"):
        View.from_json(twice.to_json())
    lost = replace(VIEW, nodes=NODES[1:])
    with pytest.raises(BadInput, match="reads x, which is not in the view"):
        View.from_json(lost.to_json())


@pytest.mark.parametrize(
    ("computes", "read", "written", "precision"),
    [
        ("f16", {"f16"}, {"f16"}, "f16"),
        ("bf16", {"bf16"}, {"bf16"}, "bf16"),
        ("f32", {"f32"}, {"f32"}, "f32"),
        ("f32", {"f16"}, {"f16"}, "both"),
        ("f32", {"f32"}, {"f16"}, "both"),
        ("i64", {"f32"}, {"i64"}, "f32"),
        ("", {"i64"}, set(), "other"),
        ("f64", {"f64"}, {"f64"}, "other"),
    ],
)
def test_a_precision_includes_the_format_in_memory(
    computes: str, read: set[str], written: set[str], precision: str
) -> None:
    assert precision_of(computes, read, written) == precision
