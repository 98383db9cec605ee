"""A widening cast that both halves read is repeated in backward."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import graph_of, run, step_of, tied
from torch import fx

from mpcompile.passes.gradient.recompute_casts import recompute_casts
from mpcompile.program.casts import widens
from mpcompile.program.graph_text import graph_text
from mpcompile.step.liveness import saved_bytes
from mpcompile.torch_private.graphs import copy_graph

HALF = torch.randn(4, 6).half()


def halves(function: object, **inputs: torch.Tensor) -> fx.GraphModule:
    """The last op is backward."""
    module = graph_of(function, **inputs)  # type: ignore[arg-type]
    last = [node for node in module.graph.nodes if node.op == "call_function"][-1]
    last.meta["backward"] = True
    return module


def test_the_narrow_tensor_is_saved_instead_of_the_wide_one() -> None:
    def twice(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = x.relu().float()
        return wide.exp(), wide.sin()

    module = halves(twice, x=HALF)
    before = copy_graph(module)
    assert saved_bytes(module.graph) == 4 * HALF.numel()
    assert recompute_casts(module) == 1
    assert saved_bytes(module.graph) == 2 * HALF.numel()
    assert_expected_inline(
        graph_text(module.graph),
        """\
x           f16[4,6]  input
relu        f16[4,6]  relu x
_to_copy    f32[4,6]  _to_copy relu dtype=f32
exp         f32[4,6]  exp _to_copy
_to_copy_1  f32[4,6]  _to_copy relu dtype=f32
sin         f32[4,6]  sin _to_copy_1
return                exp
return                sin""",
    )
    for left, right in zip(run(module, HALF), run(before, HALF), strict=True):
        assert torch.equal(left, right)
    assert recompute_casts(module) == 0


def test_a_cast_that_only_forward_reads_stays_alone() -> None:
    module = halves(lambda x: (x.float().exp(), x.sin()), x=HALF)
    assert recompute_casts(module) == 0


def test_a_narrowing_cast_is_never_repeated() -> None:
    def twice(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        narrow = x.half()
        return narrow.exp(), narrow.sin()

    assert recompute_casts(halves(twice, x=HALF.float())) == 0


def test_no_widened_tensor_crosses_to_backward_in_a_step() -> None:
    graph = step_of(tied()).gradient.graph
    for node in graph.nodes:
        if widens(node) and not node.meta.get("backward"):
            assert not any(user.meta.get("backward") for user in node.users), node
