"""Every op of the models can be written, and the script equals the step bit by bit."""

from __future__ import annotations

import ast
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets.small_models import CUTS, compiled, workload
from planted.failing_parts import PLANTED, reduced_of
from safetensors.torch import save_file
from torch import fx

from mpcompile.numerics.lockstep import EXACT, moment
from mpcompile.search import subgraph
from mpcompile.search.reduce import Reduced
from mpcompile.search.reduced_inputs import Constant, Drawn, Source
from mpcompile.search.reduced_program import program
from mpcompile.search.subgraph import (
    Captured,
    Outcome,
    between,
    capture_values,
    inputs_of,
    maker,
    obstacle,
    run_as_the_step,
    run_wide,
)


def executed(reduced: Reduced, folder: Path) -> dict[str, Any]:
    """Return the names that a script defines."""
    file = folder / "reduced.py"
    written = program(reduced, ["about"], "reduced.safetensors")
    if written.tensors:
        save_file(written.tensors, folder / "reduced.safetensors")
    names: dict[str, Any] = {"__name__": "reduced", "__file__": str(file)}
    exec(compile(written.text, str(file), "exec"), names)
    return names


def part(captured: Captured, target: fx.Node) -> Reduced:
    """Return the part of a graph that is one op, failing or not."""

    captured = replace(captured, target=target)
    op = maker(target)
    assert op is not None
    given = {n.name: captured.values[n.name] for n in inputs_of(target, {op})}
    given = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    ours, exact = run_as_the_step(captured, given), run_wide(captured, given, EXACT)
    made = Outcome(ours, exact.values, exact.narrower, 0, 0, 0, 0.0, 0.0)
    sources = {name: Source(value) for name, value in given.items()}
    return Reduced(captured, (op,), sources, made, 0.25, 1, 1)


def _kinds(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return, per op and kinds of its arguments, the nodes that have its result as a tensor."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        op = maker(node)
        if op is not None and isinstance(node.meta.get("val"), torch.Tensor) and not obstacle(op):
            kinds = [type(item).__name__ for item in (*op.args, *op.kwargs.values())]
            result = node.args[1] if op is not node else ""
            found.setdefault(f"{op.target} {result} {kinds}", []).append(node)
    return found


# Of tacotron's ops those that are not here pass too; there are 2,600 nodes, and it takes a minute.
@pytest.mark.parametrize("name", sorted(CUTS.keys() - {"tacotron"}))
def test_every_op_of_a_model_can_be_written_and_gives_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    made = workload(name, "cpu")
    now = moment(compiled(made, "interpreter"), *made.batch)
    kinds = _kinds(now.step.gradient)
    assert len(kinds) > 15
    deepest = max((nodes[-1] for nodes in kinds.values()), key=lambda node: len(between(node, ())))
    captured = capture_values(now, deepest.name)
    for nodes in kinds.values():
        node = next((node for node in nodes if node.name in captured.values), nodes[-1])
        if node.name not in captured.values:
            captured = capture_values(now, node.name)
        reduced = part(captured, captured.node(node.name))
        names = executed(reduced, tmp_path)
        again = names["in_16_bits"](*names["inputs"]())
        kept = captured.values[node.name]
        assert again.dtype is kept.dtype
        torch.testing.assert_close(again, kept, rtol=0, atol=0, equal_nan=True)
        exact = names["in_64_bits"](*names["inputs"]())
        wide = reduced.outcome.exact[reduced.captured.target]
        assert exact.dtype is wide.dtype
        torch.testing.assert_close(exact, wide, rtol=0, atol=0, equal_nan=True)


def test_obstacles_in_the_models_are_random_numbers_and_unwritten_memory_only() -> None:
    found = set()
    for name in CUTS:
        made = workload(name, "cpu")
        for node in compiled(made, "interpreter").step.gradient.graph.nodes:
            calls = node.op == "call_function" and node.target is not operator.getitem
            if calls and obstacle(node):
                found.add(f"{node.target}: {obstacle(node)}")
    assert found == {
        "aten.bernoulli.p: draws random numbers",
        "aten.empty_like.default: reads memory that was never written",
    }


def test_stand_ins_are_made_in_the_script_as_in_the_search(tmp_path: Path) -> None:
    reduced = reduced_of(PLANTED["attention"])
    for made in (Constant(3.0), Drawn(7, 1.5, 20.0)):
        sources = {}
        for name, source in reduced.inputs.items():
            like = torch.empty(source.value.shape, dtype=source.value.dtype)
            sources[name] = Source(made.like(like), made)
        replaced = Reduced(
            reduced.captured, reduced.ops, sources, reduced.outcome, reduced.limit, 1, 1
        )
        again = executed(replaced, tmp_path)["inputs"]()
        for value, source in zip(again, sources.values(), strict=True):
            assert value.dtype is source.value.dtype
            assert torch.equal(value, source.value)


@pytest.mark.parametrize("name", ["epsilon", "overflowing", "saturating"])
def test_on_a_device_with_16_bit_arithmetic_nothing_is_widened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subgraph, "emulate_half", lambda _: 0)  # as on CUDA
    reduced = reduced_of(PLANTED[name])
    text = program(reduced, [], "").text
    body = text.partition("def in_16_bits")[2].partition("def in_64_bits")[0]
    assert ".float()" not in body
    assert ".to(" not in body
    names = executed(reduced, tmp_path)
    again = names["in_16_bits"](*names["inputs"]())
    kept = reduced.outcome.ours[reduced.captured.rounded[reduced.captured.target.name]]
    torch.testing.assert_close(again, kept, rtol=0, atol=0, equal_nan=True)


HOSTILE = [
    "coding: utf-7",
    '"""\nimport os',
    "a\rimport os",
    "\x1b[31m \u2028 \u202e \udc80 \x00 \\",
    "'; import os #",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_comment(text: str, tmp_path: Path) -> None:
    reduced = reduced_of(PLANTED["epsilon"])
    plain = program(reduced, ["about"], "data.safetensors").text
    for node in [*reduced.captured.graph.graph.nodes, *reduced.captured.arithmetic.graph.nodes]:
        where = node.meta.get("where")
        if where is not None:
            node.meta["where"] = replace(where, module=text, file=text.replace("\0", ""))
        node.meta["nn_module_stack"] = {"x": (text, "")}
    written = program(reduced, [text], text).text
    assert ast.dump(ast.parse(written.encode())) == ast.dump(ast.parse(plain))
    assert all(c.isprintable() or c == "\n" for c in written)
    assert "os" not in executed(reduced, tmp_path)


def test_the_name_of_the_file_beside_it_is_one_literal() -> None:
    now_reduced = reduced_of(PLANTED["attention"])
    sources = {name: Source(torch.ones(100)) for name in now_reduced.inputs}
    held = Reduced(now_reduced.captured, now_reduced.ops, sources, now_reduced.outcome, 0.25, 1, 1)
    for text in HOSTILE:
        tree = ast.parse(program(held, [], text).text)
        assert text in [item.value for item in ast.walk(tree) if isinstance(item, ast.Constant)]


def test_identifiers_are_never_reserved_words(tmp_path: Path) -> None:
    reduced = reduced_of(PLANTED["epsilon"])
    graph, arithmetic = reduced.captured.graph.graph, reduced.captured.arithmetic.graph
    old = list(reduced.inputs)
    fresh = ["import os; x", "torch"]
    for before, after in zip(old, fresh, strict=True):
        for node in [*graph.nodes, *arithmetic.nodes]:
            if node.name == before:
                node.name = after
    inputs = dict(zip(fresh, reduced.inputs.values(), strict=True))
    rounded = {**reduced.captured.rounded}
    rounded |= {after: rounded[before] for before, after in zip(old, fresh, strict=True)}

    captured = replace(reduced.captured, rounded=rounded)
    renamed = replace(reduced, captured=captured, inputs=inputs)
    names = executed(renamed, tmp_path)
    assert names["torch"] is torch
    assert not names["in_16_bits"](*names["inputs"]()).isfinite().all()
