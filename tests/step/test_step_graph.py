"""StepGraph: what `check` catches, the text form, arenas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from programs.graphs import linear, step_of, tied

from mpcompile.errors import Defect
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.step.arena import Arena, arena_views
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.slots import Role, Slot
from mpcompile.step.whole_step import whole_step


def packed() -> StepGraph:
    step = step_of(linear())
    pack_gradients(step)
    return step


def test_a_slot_of_another_shape_is_caught() -> None:
    step = packed()
    step.slots["grad.weight"] = replace(step.slots["grad.weight"], shape=(3, 5))
    with pytest.raises(Defect, match=r"gradient graph's .* is f32\[3,4\], its slot"):
        step.check()


def test_a_slot_of_another_dtype_is_caught() -> None:
    step = packed()
    step.slots["arena0.master"] = replace(step.slots["arena0.master"], dtype=torch.float16)
    with pytest.raises(Defect, match="update graph's arena0_master is f32"):
        step.check()


def test_a_missing_slot_is_caught() -> None:
    step = packed()
    del step.slots["batch.0"]
    with pytest.raises(Defect, match=r"has no slot \(batch\.0\)"):
        step.check()


def test_a_gradient_that_nothing_makes_is_caught() -> None:
    step = packed()
    output = step.gradient.graph.output_node()
    output.args = (output.args[0][:-1],)  # type: ignore[index]
    output.meta["slots"] = output.meta["slots"][:-1]
    with pytest.raises(Defect, match=r"the update reads grad\.bias, which nothing makes"):
        step.check()


def test_a_result_that_is_not_state_is_caught() -> None:
    step = packed()
    output = step.update.graph.output_node()
    output.meta["slots"] = ("made_up",)
    value = results(step.update.graph)["made_up"].meta["val"]
    step.slots["made_up"] = Slot("made_up", Role.LOSS, tuple(value.shape), value.dtype)
    with pytest.raises(Defect, match="the update writes made_up, which is not state"):
        step.check()


def test_results_without_slots_are_caught() -> None:
    step = packed()
    step.update.graph.output_node().meta["slots"] = ()
    with pytest.raises(Defect, match="results without slots"):
        step.check()


def test_parameters_are_aligned_in_their_arena() -> None:
    arena = Arena("arena0", 0, ("a", "b", "c"), ((3, 4), (64,), ()), flat=True)
    assert arena.offsets == (0, 32, 96, 128)
    buffer = torch.arange(128.0)
    views = arena_views(arena, buffer)
    assert [tuple(view.shape) for view in views] == [(3, 4), (64,), ()]
    assert [float(view.flatten()[0]) for view in views] == [0.0, 32.0, 96.0]
    assert all(view.data_ptr() % 64 == buffer.data_ptr() % 64 for view in views)


def test_views_of_the_beginning_of_an_arena() -> None:
    arena = Arena("arena0", 0, ("a", "b"), ((3, 4), (64,)), flat=True)
    assert len(arena_views(arena, torch.zeros(32))) == 1


def test_the_whole_step_reads_state_and_writes_it_back() -> None:
    step = step_of(tied())
    pack_gradients(step)
    whole = whole_step(step).graph
    reads = [node.meta["slot"] for node in whole.find_nodes(op="placeholder")]
    writes = whole.output_node().meta["slots"]
    assert writes[0] == "loss"
    assert set(writes[1:]) <= set(reads)
    assert not any(name.startswith(("grad.", "next.")) for name in reads)


def test_a_matrix_of_many_rows_has_room_for_whole_tiles() -> None:
    shapes = ((1027, 32), (1027,), (1024, 33), (1027, 2, 3))
    arena = Arena("arena0", 0, ("a", "b", "c", "d"), shapes, flat=True)
    assert arena.offsets == (0, 1032 * 32, 1032 * 32 + 1056, 1032 * 32 + 1056 + 1024 * 33,
                             1032 * 32 + 1056 + 1024 * 33 + 6176)  # fmt: skip
    assert arena.offset_of("b") == 1032 * 32
    assert Arena("arena0", 0, ("a",), shapes[:1], flat=False).offsets == (0, 1027 * 32)
