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
from mpcompile.lower.shared_memory import shared_places, with_own_memory
from mpcompile.torch_private.ops import op_name

BF16 = mpcompile.Policy(precision=mpcompile.Precision.BF16)


def test_a_view_and_the_tensor_itself_are_in_its_memory() -> None:
    state, other, empty = torch.arange(6), torch.arange(6), torch.empty(0)
    results = [state + 0, state, None, state[2:].view(2, 2), other, empty]
    assert shared_places(results, [state, torch.empty(0)]) == (1, 3)


def test_only_what_is_in_foreign_memory_is_copied() -> None:
    state, other = torch.arange(3), torch.arange(3)
    own = with_own_memory([state, other], (0,))
    state.add_(1)
    assert own[1] is other
    assert own[0].tolist() == [0, 1, 2]


def drop_zeros(graph: fx.Graph) -> int:
    """Let what adds zero return its input, as inductor does; return how many did."""
    found = [node for node in graph.nodes if op_name(node) == "add" and node.args[1] == 0]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return len(found)


@pytest.mark.parametrize("policy", [mpcompile.FULL_PRECISION, BF16], ids=["fp32", "bf16"])
def test_numbers_that_are_inputs_do_not_merge_them(
    policy: mpcompile.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped, compile_code = [], lower.compiled

    def aliasing(module: fx.GraphModule, inputs: Sequence[torch.Tensor], **options: Any) -> Any:
        dropped.append(drop_zeros(module.graph))
        return compile_code(module, inputs, **options)

    monkeypatch.setattr(lower, "compiled", aliasing)
    step = compiled(net(), backend="inductor", policy=policy)
    for seed in range(3):
        step(*batch(seed))
    assert dropped == [1, 0]
    assert (step.taken, step.skipped) == (3, 0)


@pytest.mark.parametrize("policy", [mpcompile.FULL_PRECISION, BF16], ids=["fp32", "bf16"])
def test_inductor_trains_without_a_loss_scale(policy: mpcompile.Policy) -> None:
    one, two = net(), net()
    steps = [compiled(model, backend="inductor", policy=policy) for model in (one, two)]
    for seed in range(3):
        losses = [step(*batch(seed)) for step in steps]
        assert torch.equal(*losses)
    assert [(step.taken, step.skipped) for step in steps] == [(3, 0), (3, 0)]
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


class Counting(nn.Module):
    """Counts its calls in a buffer, and returns how many there were before."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.seen + 0
        self.seen.add_(1)
        return self.linear(x), before


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_what_stands_beside_the_loss_does_not_change_with_the_state(backend: Any) -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        made, before = model(x)
        return nn.functional.cross_entropy(made, y), before

    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(
        model, loss, optimizer, batch(), policy=mpcompile.FULL_PRECISION, backend=backend
    )
    before = [step(*batch(seed))[1] for seed in range(3)]
    assert [value.item() for value in before] == [0, 1, 2]
    assert model.seen.item() == 3


def test_what_an_evaluation_returns_does_not_change_with_the_state() -> None:
    torch.manual_seed(0)
    model = Counting()

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x)[0], y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(
        model, loss, optimizer, batch(), policy=mpcompile.FULL_PRECISION, backend="inductor"
    )
    step(*batch())
    _, before = step.forward(batch()[0])
    for seed in range(2):
        step(*batch(seed))
    assert before.item() == 1
