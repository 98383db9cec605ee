"""Joined working copies are views of their arena."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, layered, run, step_of, tied

from mpcompile.errors import Defect
from mpcompile.passes.step.drop_dead import drop_dead
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.lay_out_copies import lay_out_copies
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.program.graph_text import graph_text
from mpcompile.step.graph import StepGraph, call, placeholders, results, set_results

_ATEN = torch.ops.aten


def hoisted() -> StepGraph:
    """Return the tied workload's step; of its copies only the gate's weight is aligned."""
    step = step_of(tied())
    hoist_weight_casts(step)
    return step


def join(step: StepGraph, *names: str, dim: int = 0) -> None:
    """Let the gradient graph return the sum of joined working copies beside the loss."""
    graph = step.gradient.graph
    copies = [placeholders(graph)[f"{name}.working"] for name in names]
    with graph.inserting_before(graph.output_node()):
        cat = call(graph, _ATEN.cat.default, copies, dim)
        total = call(graph, _ATEN.sum.default, call(graph, _ATEN.to.dtype, cat, torch.float32))
        loss = call(graph, _ATEN.add.Tensor, results(graph)["loss"], total)
    set_results(graph, {**results(graph), "loss": loss})


def square_step() -> StepGraph:
    """Return a step with weights of 8 x 8 and 4 x 8 between others."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 4)
    )
    base = layered()
    batch = (torch.randn(2, 8), torch.tensor([0, 2]))
    workload = replace(
        base, model=model, batch=batch, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    step = step_of(workload)
    hoist_weight_casts(step)
    return step


def test_what_is_joined_lies_side_by_side_and_is_read_at_once() -> None:
    step = square_step()
    join(step, "0.weight", "2.weight")
    assert lay_out_copies(step) == 1
    drop_dead(step)
    assert_expected_inline(
        "\n".join(graph_text(step.gradient.graph).splitlines()[:12]),
        """\
batch_0                     f32[2,8]   input batch.0
batch_1                     i64[2]     input batch.1
_0_weight_working           f16[8,8]   input 0.weight.working
_0_bias_working             f16[8]     input 0.bias.working
_1_weight_working           f16[8,8]   input 1.weight.working
_2_weight_working           f16[4,8]   input 2.weight.working
_2_bias_working             f16[4]     input 2.bias.working
_0_weight_joined            f16[12,8]  input 0.weight.joined
_to_copy_2                  f16[2,8]   _to_copy batch_0 dtype=f16
t                           f16[8,8]   t _0_weight_working
addmm                       f16[2,8]   addmm _0_bias_working _to_copy_2 t
t_1                         f16[8,8]   t _1_weight_working""",
    )
    assert step.joined == {"0.weight.joined": ("0.weight", "2.weight")}
    (arena,) = step.arenas
    assert arena.parameters == ("0.weight", "2.weight", "0.bias", "1.weight", "2.bias")
    assert arena.offsets == (0, 64, 96, 128, 192, 224)
    pack_gradients(step)
    step.check()
    text = str(step)
    assert lay_out_copies(step) == 0
    assert str(step) == text


def test_the_graph_computes_the_same() -> None:
    before, after = square_step(), square_step()
    for step in (before, after):
        join(step, "0.weight", "2.weight")
    lay_out_copies(after)
    given = inputs_of(before, before.gradient.graph)
    named = dict(zip(placeholders(before.gradient.graph), given, strict=True))
    whole = torch.cat([named["0.weight.working"], named["2.weight.working"]])
    inputs = inputs_of(after, after.gradient.graph, **{"0.weight.joined": whole})
    for left, right in zip(run(before.gradient, *given), run(after.gradient, *inputs), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("names", [("words.weight", "gate.weight"), ("gate.weight", "gate.weight")])
def test_a_gap_or_a_repetition_keeps_the_copy(names: tuple[str, ...]) -> None:
    step = hoisted()
    join(step, *names)
    assert lay_out_copies(step) == 0
    assert not step.joined


def test_another_dimension_keeps_the_copy() -> None:
    step = square_step()
    join(step, "0.weight", "1.weight", dim=1)
    assert lay_out_copies(step) == 0


def test_a_weight_lies_beside_its_first_neighbours_only() -> None:
    step = square_step()
    join(step, "0.weight", "1.weight")
    join(step, "1.weight", "2.weight")
    join(step, "0.weight", "1.weight")
    assert lay_out_copies(step) == 1
    assert step.joined == {"0.weight.joined": ("0.weight", "1.weight")}
    assert graph_text(step.gradient.graph).count(" cat ") == 1


def test_check_sees_weights_that_do_not_lie_side_by_side() -> None:
    step = square_step()
    join(step, "0.weight", "2.weight")
    lay_out_copies(step)
    pack_gradients(step)
    (arena,) = step.arenas
    order = (0, 2, 1, 3, 4)
    step.arenas = (
        replace(
            arena,
            parameters=tuple(arena.parameters[i] for i in order),
            shapes=tuple(arena.shapes[i] for i in order),
        ),
    )
    with pytest.raises(Defect, match=r"weights of 0\.weight\.joined are not side by side"):
        step.check()


def pad(step: StepGraph, name: str, rows: int) -> None:
    """Let the gradient graph read a working copy with zeros behind it."""
    graph = step.gradient.graph
    copy = placeholders(graph)[f"{name}.working"]
    with graph.inserting_before(graph.output_node()):
        zeros = call(graph, _ATEN.new_zeros.default, copy, [rows, copy.meta["val"].shape[1]])
        cat = call(graph, _ATEN.cat.default, [copy, zeros])
        total = call(graph, _ATEN.sum.default, call(graph, _ATEN.to.dtype, cat, torch.float32))
        loss = call(graph, _ATEN.add.Tensor, results(graph)["loss"], total)
    set_results(graph, {**results(graph), "loss": loss})


def test_zeros_behind_a_weight_are_those_of_the_arena() -> None:
    step = hoisted()  # behind words.weight, f16[10,8], there are 16 elements
    pad(step, "words.weight", 2)
    assert lay_out_copies(step) == 1
    assert step.joined == {"words.weight.padded": ("words.weight",)}
    assert step.slots["words.weight.padded"].shape == (12, 8)
    pack_gradients(step)
    step.check()
    step.arenas = tuple(replace(arena, zeros=False) for arena in step.arenas)
    with pytest.raises(Defect, match="are not side by side"):
        step.check()


def test_more_zeros_than_there_is_room_for_are_copied() -> None:
    step = hoisted()
    pad(step, "words.weight", 3)
    assert lay_out_copies(step) == 0


def test_a_gap_that_does_not_stay_zero_is_not_read() -> None:
    step = hoisted()
    pad(step, "words.weight", 2)
    step.arenas = tuple(replace(arena, zeros=False) for arena in step.arenas)
    assert lay_out_copies(step) == 0
