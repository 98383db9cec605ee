"""Options as constants: the graph computes what it computed with them as inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from programs.graphs import WORKLOADS, inputs_of, run, step_of

from mpcompile.passes.export.fix_options import FixOptions, is_fixed
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.graph import placeholders
from mpcompile.torch_private.graphs import copy_graph


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_fixed_graph_computes_the_same_without_the_inputs(name: str) -> None:
    step = step_of(WORKLOADS[name](), FULL_PRECISION)
    options = [s.name for s in step.slots.values() if is_fixed(s)]
    given = {k: torch.tensor(step.options[k], dtype=torch.float64) for k in options}
    expected = run(step.update, *inputs_of(step, step.update.graph, **given))
    fixed = copy_graph(step.update)
    assert FixOptions(step)(fixed) == len(options)
    assert FixOptions(step)(fixed) == 0
    assert set(placeholders(step.update.graph)) - set(placeholders(fixed.graph)) == set(options)
    found = run(fixed, *inputs_of(step, fixed.graph))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_computed_from_options_alone_is_a_number() -> None:
    step = step_of(WORKLOADS["tied"](), FULL_PRECISION)
    FixOptions(step)(step.update)
    assert all(
        node.all_input_nodes for node in step.update.graph.nodes if node.op == "call_function"
    )


def test_a_tensor_of_the_optimizer_is_a_constant_too() -> None:
    workload = WORKLOADS["linear"]()
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    optimizer = torch.optim.Adam(workload.model.parameters(), betas=betas)
    step = step_of(replace(workload, optimizer=optimizer), FULL_PRECISION)
    given = {k: torch.tensor(v, dtype=torch.float64) for k, v in step.options.items()}
    expected = run(step.update, *inputs_of(step, step.update.graph, **given))
    assert FixOptions(step)(step.update) > 0
    found = run(step.update, *inputs_of(step, step.update.graph, **given))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
