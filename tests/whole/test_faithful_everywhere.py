"""What a program does beside its graph, in each way to train it: as eager PyTorch, or refused.

Each kind is a row of the tables in ``docs/faithful.md`` and ``docs/training-loop.md``. Combinations
that other tests have are left out; `ELSEWHERE` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import FULL_PRECISION, TrainStep
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

RATE = 0.1
CALLS = 8
Batch = tuple[Tensor, Tensor]


class Scaled(torch.autograd.Function):
    """Gradients are a tenth."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *grads: Any) -> Any:
        return grads[0] * 0.1


class Net(nn.Module):
    """A net with a place for each kind."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.teacher = nn.Linear(6, 8).requires_grad_(False)
        self.register_buffer("center", torch.zeros(8))
        self.center: Tensor
        self.gain = 1.0
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        hidden = self.middle(self, torch.tanh(self.norm(self.one(x))))
        result: Tensor = self.two(hidden * self.gain + self.center)
        return result


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = (model(x) - y).square().mean()
    return result


def batch(seed: int, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, torch.randn(count, 3, generator=generator) + x[:, :3]


def same(_: Any, hidden: Tensor) -> Tensor:
    return hidden


def scaled(_: Any, hidden: Tensor) -> Tensor:
    result: Tensor = Scaled.apply(hidden)  # type: ignore[no-untyped-call]
    return result


def nothing(*_: Any) -> None:
    pass


def hooked(_: Any, hidden: Tensor) -> Tensor:
    if hidden.requires_grad:
        hidden.register_hook(lambda grad: (grad * 0.1).clamp(-1e-3, 1e-3))
    return hidden


def hook_weight(net: Net) -> None:
    net.one.weight.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))


def hook_module(net: Net) -> None:
    def halve(_: nn.Module, given: Any, __: Any) -> Any:
        return (given[0] * 0.5,)

    net.norm.register_full_backward_hook(halve)


def follow(net: Any, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        net.teacher.weight.mul_(0.9).add_(net.one.weight, alpha=0.1)
    result: Tensor = hidden - 0.1 * net.teacher(net.given)
    return result


def centered(net: Any, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        net.center.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
    result: Tensor = hidden - net.center
    return result


def freeze(net: Net, call: int) -> None:
    net.one.requires_grad_(call % 4 != 2)


def evaluate(net: Net, call: int) -> None:
    net.norm.train(call % 4 < 2)


def change_number(net: Net, call: int) -> None:
    net.gain = 1.0 if call % 4 < 2 else 0.5


def replace_buffer(net: Net, call: int) -> None:
    if call == 2:
        net.center = torch.full((8,), 0.3)


@dataclass(frozen=True)
class Kind:
    """What a program has beside its graph.

    Attributes:
        middle: a part of the forward pass.
        prepare: what happens before compiling.
        change: what happens before a call, by its number.
    """

    middle: Callable[[Any, Tensor], Tensor] = same
    prepare: Callable[[Net], None] = nothing
    change: Callable[[Net, int], None] = nothing


KINDS = {
    "function": Kind(scaled),
    "hook on a tensor": Kind(hooked),
    "hook on a parameter": Kind(prepare=hook_weight),
    "hook on a module": Kind(prepare=hook_module),
    "freezing": Kind(change=freeze),
    "evaluation mode": Kind(change=evaluate),
    "Python number": Kind(change=change_number),
    "replaced buffer": Kind(change=replace_buffer),
    "written parameter": Kind(follow),
    "norm written under no_grad": Kind(centered),
}
ELSEWHERE = {
    # tests/whole/test_program_with_derivatives.py
    "function": ("accumulation", "clipping", "resume", "export"),
    # tests/program/derivatives/test_hooks.py
    "hook on a parameter": ("accumulation", "dynamic"),
    "hook on a module": ("dynamic",),
    # tests/train/test_changes.py and test_changes_said.py
    "freezing": ("accumulation", "clipping", "dynamic", "resume"),
    "evaluation mode": ("accumulation", "clipping", "dynamic"),
    "Python number": ("accumulation", "clipping", "dynamic"),
    "replaced buffer": ("accumulation",),
}


def without(way: str) -> list[str]:
    """Return the kinds of which no other test has this way."""
    return [name for name in KINDS if way not in ELSEWHERE.get(name, ())]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made(name: str) -> tuple[Net, torch.optim.Optimizer]:
    """Return a new net and its optimizer; all nets of a kind are equal."""
    net = Net(KINDS[name].middle)
    KINDS[name].prepare(net)
    parameters = [value for name, value in net.named_parameters() if "teacher" not in name]
    return net, torch.optim.SGD(parameters, lr=RATE, momentum=0.9)


def compiled(name: str, **options: Any) -> tuple[Net, TrainStep]:
    net, optimizer = made(name)
    options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
    return net, mpcompile.compile(net, loss, optimizer, batch(0), **options)


def eager(
    name: str,
    counts: tuple[int, ...] = (8,) * CALLS,
    accumulate: int = 1,
    norm: float = 0.0,
    called: Callable[[Net], Any] = lambda net: net,
) -> Net:
    """Return a net after plain training."""
    net, optimizer = made(name)
    run = called(net)
    for call, count in enumerate(counts):
        if call % accumulate == 0:
            KINDS[name].change(net, call)
        loss(run, *batch(call, count)).backward()
        if (call + 1) % accumulate == 0:
            for value in net.parameters():
                if value.grad is not None:
                    value.grad /= accumulate
            if norm:
                torch.nn.utils.clip_grad_norm_(net.parameters(), norm)
            optimizer.step()
            optimizer.zero_grad()
    return net


def differing(mine: Net, theirs: Net) -> list[str]:
    held, true = mine.state_dict(), theirs.state_dict()
    return [name for name, value in true.items() if not torch.equal(held[name], value)]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training without it ends at other weights, so a step that drops it is found."""
    found = eager(name)
    monkeypatch.setitem(KINDS, name, Kind())
    assert "two.weight" in differing(found, eager(name))


@pytest.mark.parametrize("name", without("accumulation"))
def test_accumulation(name: str) -> None:
    net, step = compiled(name, accumulate=2)
    for call in range(CALLS):
        if call % 2 == 0:
            KINDS[name].change(net, call)
        step(*batch(call))
    assert differing(net, eager(name, accumulate=2)) == []


@pytest.mark.parametrize("name", without("clipping"))
def test_clipping(name: str) -> None:
    """The norm is summed in another order, so the weights are close."""
    net, step = compiled(name, max_grad_norm=0.05)
    for call in range(CALLS):
        KINDS[name].change(net, call)
        step(*batch(call))
    theirs = eager(name, norm=0.05).state_dict()
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", without("resume"))
def test_resume(name: str, tmp_path: Path) -> None:
    net, step = compiled(name)
    for call in range(4):
        KINDS[name].change(net, call)
        step(*batch(call))
    step.save(tmp_path)
    other, again = compiled(name)
    again.load(tmp_path)
    other.gain = net.gain
    other.norm.train(net.norm.training)
    other.one.requires_grad_(net.one.weight.requires_grad)
    for call in range(4, CALLS):
        KINDS[name].change(other, call)
        again(*batch(call))
    assert differing(other, eager(name)) == []


@pytest.mark.parametrize("name", without("dynamic"))
def test_an_open_batch_size(name: str) -> None:
    counts = (8, 5, 8, 3, 5, 8, 4, 8)
    net, step = compiled(name, dynamic=True)
    for call, count in enumerate(counts):
        KINDS[name].change(net, call)
        step(*batch(call, count))
    assert differing(net, eager(name, counts)) == []


def distance(found: Net, true: Net, start: Net) -> float:
    """Return the largest distance of a weight from the true one over that one's movement."""
    held, before = found.state_dict(), start.state_dict()
    return max(
        float((held[name] - value).norm() / (value - before[name]).norm())
        for name, value in true.state_dict().items()
        # The true gradient of a bias before a norm is zero.
        if value.is_floating_point() and name != "one.bias" and not torch.equal(value, before[name])
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_backend_of_torch_compile(name: str) -> None:
    options: Any = {"precision": "bf16", "backend": "interpreter"}
    found = eager(name, called=lambda net: torch.compile(net, backend="mpcompile", options=options))
    assert distance(found, eager(name), made(name)[0]) < 0.1


@pytest.mark.parametrize("name", KINDS)
def test_the_lightning_plugin(name: str) -> None:
    pl: Any = pytest.importorskip("pytorch_lightning")
    lightning: Any = pytest.importorskip("mpcompile.lightning")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, net: Net, optimizer: torch.optim.Optimizer) -> None:
            super().__init__()
            self.net, self.optimizer = net, optimizer

        def training_step(self, batch: Batch, call: int) -> Tensor:
            KINDS[name].change(self.net, call)
            return loss(self.net, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    net, optimizer = made(name)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    policy = mpcompile.Policy(precision=mpcompile.Precision.BF16)
    trainer = pl.Trainer(
        accelerator="cpu",
        plugins=lightning.MPCompilePrecision(policy, backend="interpreter"),
        enable_checkpointing=False,
        max_epochs=1,
        **quiet,
    )
    data: Any = torch.utils.data.DataLoader([batch(call) for call in range(CALLS)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Module(net, optimizer), data)
    assert distance(net, eager(name), made(name)[0]) < 0.1


@pytest.mark.parametrize("name", without("export"))
def test_export(name: str, tmp_path: Path) -> None:
    """An exported step trains as the program is when it is exported."""
    net, optimizer = made(name)
    KINDS[name].change(net, 2)
    workload = Workload(net, batch(0), loss, optimizer)
    exported = transform(workload, Choices(policy=FULL_PRECISION))
    export_step(exported, tmp_path / "train.onnx")
    runtime = OrtTrainStep(tmp_path / "train.onnx")
    mine = [float(runtime(*(value.numpy() for value in batch(call)))) for call in range(4)]
    theirs = []
    for call in range(4):
        value = loss(net, *batch(call))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(value.detach()))
    assert mine == pytest.approx(theirs, rel=1e-4)
