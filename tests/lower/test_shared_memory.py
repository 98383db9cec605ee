"""What compiled code returns never changes with the state that it was computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from programs.small_step import batch, compiled, net
from torch import fx, nn

import mpcompile
from mpcompile.lower import lower
from mpcompile.lower.shared_memory import OwnMemory, shared_results
from mpcompile.torch_private import inductor
from mpcompile.torch_private.ops import op_name

BF16 = mpcompile.Policy(precision=mpcompile.Precision.BF16)


def test_a_view_and_the_tensor_itself_are_in_its_memory() -> None:
    state, other, empty = torch.arange(6), torch.arange(6), torch.empty(0)
    results = [state + 0, state, None, state[2:].view(2, 2), other, empty]
    assert shared_results(results, [state, torch.empty(0)]) == (1, 3)


def test_only_what_is_in_the_memory_of_an_input_is_copied() -> None:
    own = OwnMemory()
    for start in (0, 5):
        state, other = torch.arange(start, start + 3), torch.arange(3)
        first, second = own([state, other], [state])
        state.add_(1)
        assert second is other
        assert first.tolist() == [start, start + 1, start + 2]


def drop_zeros(graph: fx.Graph) -> int:
    """Let what adds zero return its input, as inductor does; return how many did."""
    found = [node for node in graph.nodes if op_name(node) == "add" and node.args[1] == 0]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return len(found)


def test_numbers_that_are_inputs_do_not_merge_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []

    def aliasing(module: fx.GraphModule, inputs: Sequence[torch.Tensor], **options: Any) -> Any:
        dropped.append(drop_zeros(module.graph))
        return inductor.compiled(module, inputs, **options)

    monkeypatch.setattr(lower, "compiled", aliasing)
    step = compiled(net(), backend="inductor", policy=BF16)
    for seed in range(3):
        step(*batch(seed))
    assert dropped == [1, 0]
    assert (step.taken, step.skipped) == (3, 0)


def test_inductor_trains_without_a_loss_scale() -> None:
    step = compiled(net(), backend="inductor", policy=BF16)
    for seed in range(3):
        assert step(*batch(seed)).isfinite()
    assert (step.taken, step.skipped) == (3, 0)


class Counting(nn.Module):
    """Counts its calls in a buffer, and returns how many there were before."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.seen + 0
        if self.training:
            self.seen.add_(1)
        return self.linear(x), before


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_what_is_returned_does_not_change_with_the_state(backend: Any) -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        made, before = model(x)
        return nn.functional.cross_entropy(made, y), before

    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(
        model, loss, optimizer, batch(), policy=mpcompile.FULL_PRECISION, backend=backend
    )
    trained, evaluated = [], []
    for seed in range(3):
        trained.append(step(*batch(seed))[1])
        evaluated.append(step.forward(batch(seed)[0])[1])
    assert [value.item() for value in trained] == [0, 1, 2]
    assert [value.item() for value in evaluated] == [1, 2, 3]
    assert model.seen.item() == 3
