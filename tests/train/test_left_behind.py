"""Tensors that a program puts into attributes, items, closures and globals when it runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, SideEffect
from mpcompile.onnx.step_export import export_step
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices

LAST: Any = None


@dataclass
class Record:
    """An object of the program's own."""

    entropy: Any = None
    parts: Any = field(default_factory=dict)


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: Any = None


class Net(nn.Module):
    """Leaves tensors wherever a program can."""

    shared: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.stats: dict[str, Any] = {}
        self.record = Record()
        self.slotted = Slotted()
        self.p = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global LAST
        hidden: torch.Tensor = self.fc(x)
        self.last = torch.softmax(hidden, 1)
        self.stats["entropy"] = -(self.last * self.last.log()).sum(1).mean()
        self.record.entropy = self.stats["entropy"]
        self.record.parts = {"both": [hidden.sum(), hidden.mean()], "of": "x"}
        self.slotted.kept = hidden * self.p
        LAST = hidden.argmax(1)
        Net.shared = hidden.max()
        return hidden


def loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # The penalty reads what this same call has left.
    value: torch.Tensor = nn.functional.cross_entropy(model(x), y) + 0.01 * model.stats["entropy"]
    return value


def batch(seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def places(model: Any) -> dict[str, Any]:
    return {
        "last": model.last,
        "entropy": model.stats["entropy"],
        "record": model.record.entropy,
        "both 0": model.record.parts["both"][0],
        "both 1": model.record.parts["both"][1],
        "kept": model.slotted.kept,
        "global": LAST,
        "class": Net.shared,
    }


def sides(make: Callable[[], nn.Module] = Net) -> tuple[list[Any], list[Any]]:
    torch.manual_seed(0)
    mine = make()
    models = [mine, copy.deepcopy(mine)]
    return models, [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]


def eager(model: nn.Module, optimizer: Any, given: Any, how: Any = loss, parts: int = 1) -> None:
    for part in range(parts):
        (how(model, *given[part]) / parts).backward()
    optimizer.step()
    optimizer.zero_grad()


def quiet(*given: Any, **options: Any) -> Any:
    options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", SideEffect)
        return mpcompile.compile(*given, **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_call_leaves_its_own_tensors(dynamic: bool) -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0), dynamic=dynamic)
    assert not hasattr(mine, "last")
    assert mine.stats == {}
    for seed, count in enumerate((6, 6, 4, 6, 4)):
        given = batch(seed, count)
        step(*given)
        found = dict(places(mine))
        eager(theirs, optimizers[1], [given])
        for name, value in places(theirs).items():
            assert torch.equal(found[name], value), (seed, name)
            assert not found[name].requires_grad
        assert mine.record.parts["of"] == "x"
    for left, right in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left, right)
    assert len(step._graphs) == (1 if dynamic else 2)


def test_the_check_before_a_call_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    (mine, _), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0))
    step(*batch(0))
    monkeypatch.setattr(type(step._guard), "_holds_by_value", lambda _: pytest.fail("slow"))
    step(*batch(1))
    step(*batch(2))


def test_what_the_user_does_with_a_place_makes_no_graph() -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0))
    for seed in range(6):
        for model in (mine, theirs):
            if seed % 2:
                model.last = None
                model.stats = {}
                model.record = Record()
        step(*batch(seed))
        found = dict(places(mine))
        eager(theirs, optimizers[1], [batch(seed)])
        assert all(torch.equal(found[name], value) for name, value in places(theirs).items())
    assert len(step._graphs) == 1


def test_a_change_beside_a_place_still_counts() -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0))
    for seed in range(4):
        mine.p = theirs.p = 0.5 + seed % 2
        step(*batch(seed))
        found = dict(places(mine))
        eager(theirs, optimizers[1], [batch(seed)])
        assert torch.equal(found["kept"], places(theirs)["kept"])
    assert len(step._graphs) == 2


def test_accumulation() -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0), accumulate=2)
    for update in range(3):
        given = [batch(2 * update), batch(2 * update + 1)]
        for each in given:
            step(*each)
        found = dict(places(mine))
        eager(theirs, optimizers[1], given, parts=2)
        assert all(torch.equal(found[name], value) for name, value in places(theirs).items())
    for left, right in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left, right)


class Modes(nn.Module):
    """Leaves one tensor in training mode and another in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.trained: Any = None
        self.tested: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc(x)
        if self.training:
            self.trained = hidden.mean()
        else:
            self.tested = hidden.sum()
        return hidden


def plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def test_another_mode_leaves_something_else() -> None:
    (mine, theirs), optimizers = sides(Modes)
    step = quiet(mine, plain, optimizers[0], batch(0))
    for seed in range(8):
        for model in (mine, theirs):
            model.train(seed % 2 == 0)
        step(*batch(seed))
        eager(theirs, optimizers[1], [batch(seed)], plain)
        for name in ("trained", "tested"):
            one, other = getattr(mine, name), getattr(theirs, name)
            assert one is other is None or torch.equal(one, other)
    assert len(step._graphs) <= 4


class Recurrent(Modes):
    """Its next call reads what a call has left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc(x)
        if self.tested is not None:
            hidden = hidden + self.tested
        self.tested = hidden.detach().mean(0)
        self.trained = hidden.sum()
        return hidden


@pytest.mark.parametrize("first", [None, torch.ones(3)])
def test_a_tensor_that_the_next_call_reads_is_only_said(first: Any) -> None:
    (mine, _), optimizers = sides(Recurrent)
    mine.tested = first
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = mpcompile.compile(mine, plain, optimizers[0], batch(0), policy=FULL_PRECISION)
    (said,) = [str(item.message) for item in caught if item.category is SideEffect]
    assert "model.tested gets a tensor from the program and read by its next call" in said
    assert "register_buffer" in said
    step(*batch(1))
    assert mine.tested is first
    assert mine.trained is not None


def test_a_hook_records_into_a_closure() -> None:
    (mine, theirs), optimizers = sides(lambda: nn.Linear(4, 3))
    stores: list[dict[str, torch.Tensor]] = [{}, {}]
    for model, store in zip((mine, theirs), stores, strict=True):

        def record(_: Any, __: Any, made: torch.Tensor, store: Any = store) -> None:
            store["made"] = made

        model.register_forward_hook(record)
    step = quiet(mine, plain, optimizers[0], batch(0))
    for seed in range(3):
        step(*batch(seed))
        eager(theirs, optimizers[1], [batch(seed)], plain)
        assert torch.equal(stores[0]["made"], stores[1]["made"])


def test_half_precision_gives_the_dtype_of_the_program() -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0), policy=mpcompile.Policy())
    step(*batch(0))
    found = dict(places(mine))
    eager(theirs, optimizers[1], [batch(0)])
    for name, value in places(theirs).items():
        assert found[name].dtype is value.dtype
        close = torch.isclose(found[name].float(), value.detach().float(), rtol=1e-2, atol=1e-2)
        assert bool(close.all())


def test_inductor() -> None:
    (mine, theirs), optimizers = sides()
    step = quiet(mine, loss, optimizers[0], batch(0), backend="inductor")
    for seed in range(2):
        step(*batch(seed))
        found = dict(places(mine))
        eager(theirs, optimizers[1], [batch(seed)])
        for name, value in places(theirs).items():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_an_export_leaves_them_out(tmp_path: Path) -> None:
    (mine, _), optimizers = sides()
    made = transform(Workload(mine, batch(0), loss, optimizers[0]), Choices(policy=FULL_PRECISION))
    document = export_step(made, tmp_path / "train.onnx")
    outputs = {value.name for value in ir.load(tmp_path / "train.onnx").graph.outputs}
    assert outputs == {"loss", *(slot.next for slot in document.state if slot.next)}


def test_what_backward_leaves_is_compared() -> None:
    """A gradient hook puts another tensor there after the forward pass."""

    class Hooked(Modes):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.fc(x)
            self.trained = hidden.sum()

            def keep(grad: torch.Tensor) -> None:
                self.trained = grad.sum() + 1.0

            hidden.register_hook(keep)
            return hidden

    (mine, _), optimizers = sides(Hooked)
    with pytest.raises(mpcompile.Unfaithful, match=r"left in model\.trained"):
        mpcompile.compile(mine, plain, optimizers[0], batch(0), policy=FULL_PRECISION)
