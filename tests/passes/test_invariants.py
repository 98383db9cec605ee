"""What passes rely on holds after each of them, in every kind of loop; and what breaks it is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles.simulated_ranks import among
from programs.graphs import WORKLOADS, layered, step_of

from mpcompile.passes.invariants import INVARIANTS, BrokenInvariant, check_after
from mpcompile.passes.order import training_passes
from mpcompile.passes.runner import pass_name, run_passes
from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.count_steps import TAKEN
from mpcompile.program.marks import (
    BACKWARD,
    BACKWARD_SEED,
    CLIPPED,
    FINITE,
    GATHERED,
    NORM,
    PACKED,
    SHARED_NORM,
    Mark,
)
from mpcompile.step.graph import StepGraph, add_input, call, placeholders, results, set_results
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role, Slot

LOOPS = {
    "norm": Loop(max_grad_norm=1.0),
    "value": Loop(max_grad_value=1.0),
    "sums": Loop(accumulate=2),
    "sums clipped": Loop(accumulate=2, max_grad_norm=1.0),
    "ranks": among(2),
    "slices": among(2, shard=True),
    "slices clipped": among(2, shard=True, clip=1.0),
}
ORDER = [pass_name(rewrite) for rewrite in training_passes(LossScale())]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("workload", ["linear", "tied", "convolution", "layered", "matrices"])
def test_what_passes_rely_on_holds_after_each(workload: str, loop: str) -> None:
    """`test_every_pass` looks at the plain loop in every precision."""
    parallel = LOOPS[loop].parallel
    shard = parallel is not None and parallel.shard
    if shard and workload == "matrices":
        pytest.skip("an optimizer of whole weights is not cut into slices")
    step = step_of(WORKLOADS[workload](), ranks=2 if shard else 1)
    check_after(step)
    run_passes(step, training_passes(LossScale(), LOOPS[loop]), StepGraph.check, None, check_after)


def test_rows_are_in_the_order_of_the_passes_and_name_real_ones() -> None:
    places = [ORDER.index(row.since) if row.since else -1 for row in INVARIANTS]
    assert places == sorted(places)
    assert all(row.until in ["", *ORDER] for row in INVARIANTS)
    assert len({row.says for row in INVARIANTS}) == len(INVARIANTS)


def stepped(last: str, loop: Loop = PLAIN) -> tuple[StepGraph, list[str]]:
    """Return a step after the passes up to one, and their names."""
    ranks = 2 if loop.parallel is not None and loop.parallel.shard else 1
    step = step_of(layered(), ranks=ranks)
    finished = ORDER[: ORDER.index(last) + 1] if last else []
    run_passes(step, training_passes(LossScale(), loop)[: len(finished)], StepGraph.check)
    return step, finished


def unmark(mark: Mark[object], graph: str = "update") -> Callable[[StepGraph], None]:
    def breaks(step: StepGraph) -> None:
        nodes = [node for node in step.graphs()[graph].nodes if node in mark]
        assert nodes
        mark.discard(nodes[0])

    return breaks


def other_dtype(step: StepGraph) -> None:
    for graph in step.graphs().values():
        for name, node in placeholders(graph).items():
            if name == "0.bias":
                step.slots[name] = replace(step.slots[name], dtype=torch.float64)
                node.meta["val"] = node.meta["val"].double()


def other_role(step: StepGraph) -> None:
    name = next(name for name, slot in step.slots.items() if slot.role is Role.BATCH)
    step.slots[name] = replace(step.slots[name], role=Role.HYPER, dtype=torch.float64)
    node = placeholders(step.gradient.graph)[name]
    node.meta["val"] = node.meta["val"].double()


def strays(step: StepGraph) -> None:
    PACKED[next(iter(step.gradient.graph.nodes))] = "arena0"


def forward_reads_backward(step: StepGraph) -> None:
    graph = step.gradient.graph
    last = [node for node in graph.nodes if node in BACKWARD][-1]
    with graph.inserting_after(last):
        call(graph, torch.ops.aten.neg.default, last)


def loses_a_gradient(step: StepGraph) -> None:
    values = results(step.gradient.graph)
    step.update.graph.eliminate_dead_code()
    set_results(step.gradient.graph, {k: v for k, v in values.items() if k != "grad.0.weight"})


def casts_a_weight(step: StepGraph) -> None:
    graph = step.gradient.graph
    slot = next(s for s in step.slots.values() if s.role is Role.MASTER and "bias" in s.name)
    node = placeholders(graph).get(slot.name) or add_input(graph, slot, next(iter(graph.nodes)))
    with graph.inserting_before(graph.output_node()):
        call(graph, torch.ops.aten._to_copy.default, node, dtype=torch.float16)


def casts_a_read_weight(step: StepGraph) -> None:
    slot = step.slots["read"] = Slot("read", Role.CONSTANT, (2,), torch.float32)
    graph = step.gradient.graph
    node = add_input(graph, slot, next(iter(graph.nodes)))
    with graph.inserting_before(graph.output_node()):
        call(graph, torch.ops.aten._to_copy.default, node, dtype=torch.float16)


def narrow_last(step: StepGraph) -> None:
    step.working.clear()
    step.working.add(step.arenas[0].parameters[-1])


def update_without(name: str) -> Callable[[StepGraph], None]:
    def breaks(step: StepGraph) -> None:
        values = results(step.update.graph)
        set_results(step.update.graph, {k: v for k, v in values.items() if k != name})

    return breaks


def reads(name: str) -> Callable[[StepGraph], None]:
    def breaks(step: StepGraph) -> None:
        graph = step.update.graph
        add_input(graph, step.slots[name], next(iter(graph.nodes)))

    return breaks


def past(mark: Mark[str] | Mark[bool]) -> Callable[[StepGraph], None]:
    """Let a reader of a marked node read what the node reads."""

    def breaks(step: StepGraph) -> None:
        node = next(node for node in step.update.graph.nodes if node in mark)
        source = node.all_input_nodes[0]
        next(iter(node.users)).replace_input_with(node, source)

    return breaks


def moved(mark: Mark[str]) -> Callable[[StepGraph], None]:
    """Move a mark to what the marked node is computed from."""

    def breaks(step: StepGraph) -> None:
        node = next(node for node in step.update.graph.nodes if node in mark)
        mark.move(node, node.all_input_nodes[0])

    return breaks


def whole_again(step: StepGraph) -> None:
    """Move the mark of a gradient back to that of all slices."""
    node = whole = next(node for node in step.update.graph.nodes if node in PACKED)
    while whole.meta["val"].shape == node.meta["val"].shape:
        whole = whole.all_input_nodes[0]
    PACKED.move(node, whole)


def without_gate(step: StepGraph) -> None:
    values = results(step.update.graph)
    master = values["arena0.master"]
    set_results(step.update.graph, {**values, "arena0.master": master.args[1]})  # type: ignore[dict-item]


def dead_node(step: StepGraph) -> None:
    graph = step.update.graph
    with graph.inserting_before(graph.output_node()):
        call(graph, torch.ops.aten.neg.default, next(iter(results(graph).values())))


SLICES = LOOPS["slices"]
BREAKS: list[tuple[str, str, Loop, Callable[[StepGraph], None]]] = [
    ("a slot's dtype", "", PLAIN, other_dtype),
    ("roles of its own", "", PLAIN, other_role),
    ("marks of the update", "", PLAIN, strays),
    ("BACKWARD_SEED", "", PLAIN, unmark(BACKWARD_SEED, "gradient")),  # type: ignore[arg-type]
    ("a result grad.NAME", "", PLAIN, loses_a_gradient),
    ("nothing of BACKWARD", "", PLAIN, forward_reads_backward),
    ("a PACKED slot", "", PLAIN, lambda step: moved_slot(step)),
    ("cast of a master", "hoist_weight_casts", PLAIN, casts_a_weight),
    ("with a copy lie first", "hoist_weight_casts", PLAIN, narrow_last),
    ("cast of a read weight", "hoist_read_casts", PLAIN, casts_a_read_weight),
    ("one FP32 gradient", "pack_gradients", PLAIN, unmark(PACKED)),  # type: ignore[arg-type]
    ("reads no gradient", "accumulate_gradients", LOOPS["sums"], reads("grad.0.weight")),
    ("is a slice", "reduce_packed", SLICES, whole_again),
    ("is unscaled", "scale_loss", PLAIN, moved(PACKED)),
    ("what is CLIPPED", "clip_gradients", LOOPS["norm"], past(CLIPPED)),  # type: ignore[arg-type]
    ("what is CLIPPED", "clip_gradients", LOOPS["norm"], lambda step: two_norms(step)),
    ("one FINITE flag", "gate_update", PLAIN, without_gate),
    ("SHARED_NORM", "share_norms", SLICES, unmark(SHARED_NORM)),  # type: ignore[arg-type]
    ("by the flag", "adjust_scale", PLAIN, update_without(TRACKER)),
    ("by the flag", "adjust_scale", PLAIN, unmark(FINITE)),  # type: ignore[arg-type]
    ("both counters", "count_steps", PLAIN, update_without(TAKEN)),
    ("never read", "report_outcome", PLAIN, reads("step_applied")),
    ("are GATHERED", "gather_slices", SLICES, lambda step: unmark_all(step)),
    ("every node is read", "drop_dead", PLAIN, dead_node),
]


def moved_slot(step: StepGraph) -> None:
    name = "arena0.grad"
    step.slots[name] = replace(step.slots[name], role=Role.OPTIMIZER)


def two_norms(step: StepGraph) -> None:
    for node in step.update.graph.nodes:
        if node in NORM:
            NORM[node] = "total"


def unmark_all(step: StepGraph) -> None:
    for node in step.update.graph.nodes:
        GATHERED.discard(node)


@pytest.mark.parametrize(("says", "last", "loop", "breaks"), BREAKS)
def test_what_is_broken_is_said(
    says: str, last: str, loop: Loop, breaks: Callable[[StepGraph], None]
) -> None:
    step, finished = stepped(last, loop)
    check_after(step, finished)
    breaks(step)
    with pytest.raises(BrokenInvariant, match=rf"^not true: .*{says}"):
        check_after(step, finished)


def test_every_row_is_seen_to_fail() -> None:
    assert all(any(says in row.says for says, *_ in BREAKS) for row in INVARIANTS)


def test_a_pass_that_breaks_what_holds_is_named() -> None:
    def careless(step: StepGraph) -> int:
        unmark_packed(step)
        return 1

    unmark_packed = unmark(PACKED)  # type: ignore[arg-type]
    step, finished = stepped("pack_gradients")

    def between(graph: StepGraph, names: object) -> None:
        assert names == ["careless"]
        check_after(graph, finished)

    with pytest.raises(BrokenInvariant) as caught:
        run_passes(step, [careless], StepGraph.check, between=between)
    assert caught.value.__notes__ == ["while careless rewrote the graph; finished before: []"]
