"""What holds for every program, on random programs of every dtype (docs/design.md lists it)."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs.graphs import graph_of, run
from programs.random_program import INPUTS, PARAMETERS, STEPS, TENSOR_CORE, Program, random_program
from torch import fx

from mpcompile.passes.forward.clean_casts import clean_casts
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.plan.dataflow import Fixed
from mpcompile.plan.given import decide
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Level, Policy
from mpcompile.precision import Precision
from mpcompile.program.describe import dataflow
from mpcompile.program.graph_text import graph_text
from mpcompile.step.record import record
from mpcompile.torch_private.graphs import copy_graph, fake_mode_of
from mpcompile.torch_private.ops import op_name

many = settings(max_examples=1000, deadline=None)
choosers = st.randoms(use_true_random=False)
formats = st.sampled_from([Precision.FP16, Precision.BF16])
levels = st.sampled_from([Level.PAPER, Level.CAREFUL, Level.TENSOR_CORES_ONLY])


def planned(program: Program, policy: Policy) -> tuple[fx.GraphModule, fx.GraphModule, Plan]:
    """Return the graph before, the graph after, and the plan between them."""
    before = program.graph()
    after = copy_graph(before)
    plan = plan_for(after, policy)
    run_passes(after, forward_passes(plan), lambda module: module.graph.lint())
    return before, after, plan


def plan_for(module: fx.GraphModule, policy: Policy) -> Plan:
    fixed = {name: Fixed.PARAMETER if name in PARAMETERS else Fixed.BATCH for name in INPUTS}
    return decide(dataflow(module, fixed, policy), policy.precision)


def dtype_of(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


@many
@given(choosers, formats, levels)
def test_only_fp32_tensors_change_and_the_signature_stays(
    chooser: random.Random, precision: Precision, level: Level
) -> None:
    before, after, _ = planned(random_program(chooser), Policy(level, precision))
    later = {node.name: node for node in after.graph.nodes}
    for node in before.graph.nodes:
        if dtype_of(node) is not torch.float32 and node.name in later:
            assert dtype_of(later[node.name]) is dtype_of(node), node
    for old, new in zip(
        before.graph.find_nodes(op="placeholder"),
        after.graph.find_nodes(op="placeholder"),
        strict=True,
    ):
        assert (old.name, dtype_of(old)) == (new.name, dtype_of(new))
    results = [
        [dtype_of(node) for node in module.graph.output_node().all_input_nodes]
        for module in (before, after)
    ]
    assert results[0] == results[1]


@many
@given(choosers, levels)
def test_a_norms_scale_and_bias_stay_fp32(chooser: random.Random, level: Level) -> None:
    _, after, _ = planned(random_program(chooser), Policy(level))
    for node in after.graph.nodes:
        if op_name(node) == "native_layer_norm":
            scale, bias = node.args[2:4]
            assert scale.op == bias.op == "placeholder"
            assert dtype_of(scale) is dtype_of(bias) is torch.float32


@many
@given(choosers, levels)
def test_without_a_tensor_core_op_the_graph_is_unchanged(
    chooser: random.Random, level: Level
) -> None:
    program = random_program(chooser, without=TENSOR_CORE)
    before, after, plan = planned(program, Policy(level))
    assert graph_text(after.graph) == graph_text(before.graph)
    assert plan.casts == ()


@many
@given(choosers, formats)
def test_the_passes_do_nothing_the_second_time(
    chooser: random.Random, precision: Precision
) -> None:
    _, after, plan = planned(random_program(chooser), Policy(precision=precision))
    text = graph_text(after.graph)
    again = run_passes(after, forward_passes(plan), lambda module: module.graph.lint())
    assert not any(again.values())
    assert graph_text(after.graph) == text
    assert plan_for(after, Policy(precision=precision)).casts == ()


@many
@given(choosers, formats, levels)
def test_what_the_nodes_say_is_what_runs_and_backward_needs_no_autocast(
    chooser: random.Random, precision: Precision, level: Level
) -> None:
    program = random_program(chooser, steps=5)
    _, after, _ = planned(program, Policy(level, precision))
    mode = fake_mode_of(after.graph)

    def joint(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = [value.detach() for value in values]
        weights = [state[list(INPUTS).index(name)].requires_grad_() for name in PARAMETERS]
        with torch.enable_grad():
            first, *_ = fx.Interpreter(after).run(*state, enable_io_processing=False)
            loss = (first.float() ** 2).mean()
        if not loss.requires_grad:
            return (loss,)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return (loss, *(item for item in found if item is not None))

    inputs = [node.meta["val"] for node in after.graph.find_nodes(op="placeholder")]
    traced = record(joint, inputs, mode)
    assert all(
        dtype_of(node) is torch.float32 for node in traced.graph.output_node().all_input_nodes
    )
    emulated = copy_graph(after)
    emulate_half(emulated)
    outputs = after.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    for node, found in zip(outputs, run(emulated, *INPUTS.values()), strict=True):
        assert found.dtype is dtype_of(node)


def cast_chain(chooser: random.Random) -> Program:
    """A program of casts and views alone, some of them of casts and views."""
    return Program(
        tuple(
            (chooser.choice(list(CASTS)), chooser.randint(0, number), 0)
            for number in range(chooser.randint(1, 10))
        ),
        (),
    )


CASTS = {
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float": lambda x: x.float(),
    "double": lambda x: x.double(),
    "view": lambda x: x.reshape(-1).view(8, 4),
    "turn": lambda x: x.transpose(0, 1),
    "relu": lambda x: x.relu(),
}


@many
@given(choosers)
def test_cleaning_casts_never_changes_a_bit(chooser: random.Random) -> None:
    steps = cast_chain(chooser).steps

    def chain(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = [x]
        for name, source, _ in steps:
            made.append(CASTS[name](made[source]))
        return tuple(made[1:])

    x = torch.linspace(-3, 3, 32).view(8, 4)
    module = graph_of(chain, x=x)
    before = copy_graph(module)
    clean_casts(module)
    for old, new in zip(run(before, x), run(module, x), strict=True):
        assert old.dtype is new.dtype
        assert torch.equal(old, new)


def test_the_random_programs_hold_what_they_are_for() -> None:
    programs = [random_program(random.Random(seed)) for seed in range(200)]
    assert {name for program in programs for name, _, _ in program.steps} == set(STEPS)
    plans = [planned(program, Policy())[2] for program in programs[:50]]
    assert sum(bool(plan.casts) for plan in plans) > 15
