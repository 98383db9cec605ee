"""A step that is saved and loaded continues bit for bit, or refuses with a reason."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs.small_step import Net, batch, loss
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, LossScale, Policy, Precision, TrainStep
from mpcompile.program.random_state import seed_all
from mpcompile.train.state_tree import pack, unpack

SCALE = LossScale(2.0**17, interval=2)
Make = Callable[[nn.Module], torch.optim.Optimizer]


class Dropping(Net):
    """A net with dropout, a frozen weight and a buffer that ``state_dict`` leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)
        self.layer.weight.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(8), persistent=False)
        self.seen: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.detach().sum(0))
        return super().forward(self.drop(x))


def optimizer_of(name: str, **options: Any) -> Make:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        kept = [p for p in model.parameters() if p.requires_grad]
        if name == "Muon":
            kept = [p for p in kept if p.dim() == 2]
        cut = len(kept) // 2
        groups = [{"params": kept[:cut]}, {"params": kept[cut:], "lr": 0.003}]
        made: torch.optim.Optimizer = getattr(torch.optim, name)(groups, lr=0.01, **options)
        return made

    return make


ADAMW = optimizer_of("AdamW")


def stepped(
    make: Make = ADAMW, model: nn.Module | None = None, **options: Any
) -> tuple[TrainStep, torch.optim.Optimizer]:
    seed_all(0)
    model = model or Dropping()
    optimizer = make(model)
    options = {"loss_scale": SCALE, **options}
    return mpcompile.compile(model, loss, optimizer, batch(), **options), optimizer


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("RAdam", {}),
    ("ASGD", {}),
    ("Rprop", {}),
    ("Adafactor", {}),
    ("AdamW", {"amsgrad": True}),
    ("NAdam", {}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("RMSprop", {"centered": True}),
    ("Adadelta", {}),
    ("Adamax", {}),
    ("Muon", {}),
]
SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 5, 5, 7]),
    lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
]


def go(step: TrainStep, scheduler: Any, first: int, last: int) -> list[float]:
    """Train on batches that contain random numbers of every global generator."""
    losses = []
    for number in range(first, last):
        x, y = batch(number)
        x = x + random.gauss(0, 1) + float(np.random.randn()) + torch.randn(())
        losses.append(float(step(x, y)))
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(losses[-1])
        else:
            scheduler.step()
    return losses


def everything(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in step._bound.named().items()}


@pytest.mark.parametrize(
    ("name", "options", "schedule"),
    [(*given, SCHEDULERS[k % len(SCHEDULERS)]) for k, given in enumerate(OPTIMIZERS)],
)
def test_a_resumed_run_equals_a_run_that_never_stopped(
    tmp_path: Path, name: str, options: dict[str, Any], schedule: Callable[[Any], Any]
) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    step, optimizer = stepped(optimizer_of(name, **options), model if name == "Muon" else None)
    scheduler = schedule(optimizer)
    go(step, scheduler, 0, 5)
    where = step.save(tmp_path, scheduler=scheduler)
    assert where == tmp_path / "step-00000005"
    expected, state = go(step, scheduler, 5, 10), everything(step)

    again = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    other, optimizer = stepped(optimizer_of(name, **options), again if name == "Muon" else None)
    scheduler = schedule(optimizer)
    seed_all(17)
    assert other.load(tmp_path, scheduler=scheduler) == where
    assert go(other, scheduler, 5, 10) == expected
    found = everything(other)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert other.skipped == step.skipped > 0


def test_a_schedule_of_the_step_continues_after_loading(tmp_path: Path) -> None:
    """The last update before a save steps the schedule, that before a load does not."""

    def made() -> tuple[TrainStep, torch.optim.lr_scheduler.LRScheduler]:
        step, optimizer = stepped()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        step.scheduler(schedule)
        return step, schedule

    def rates(step: TrainStep, schedule: Any) -> list[tuple[float, list[float]]]:
        return [(float(step(*batch(n))), schedule.get_last_lr()) for n in range(5, 9)]

    step, schedule = made()
    for number in range(5):
        step(*batch(number))
    step.save(tmp_path, scheduler=schedule)
    assert schedule.get_last_lr()[0] == 0.01 * 0.5**step.taken
    expected, state = rates(step, schedule), everything(step)
    assert 0 < step.skipped < 9

    other, schedule = made()
    other(*batch())
    other.load(tmp_path, scheduler=schedule)
    assert rates(other, schedule) == expected
    assert all(torch.equal(everything(other)[key], value) for key, value in state.items())


def test_a_step_can_load_an_earlier_checkpoint(tmp_path: Path) -> None:
    step, _ = stepped()
    x = batch()
    step(*x)
    step.save(tmp_path)
    expected = [float(step(*x)) for _ in range(3)]
    step.load(tmp_path)
    assert [float(step(*x)) for _ in range(3)] == expected


def test_between_micro_batches_saving_is_refused_and_loading_starts_a_new_update(
    tmp_path: Path,
) -> None:
    step, _ = stepped(accumulate=2)
    for number in range(2):
        step(*batch(number))
    step.save(tmp_path)
    for number in range(2, 4):
        step(*batch(number))
    expected = everything(step)
    step(*batch(9))
    with pytest.raises(BadInput, match="1 of 2 micro-batches of an update are done; save"):
        step.save(tmp_path)
    step.load(tmp_path)
    for number in range(2, 4):
        step(*batch(number))
    found = everything(step)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_tensor_learning_rate_is_loaded_in_place(tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.5)

    step, optimizer = stepped(make, Net())
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    step.save(tmp_path)
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
    step.load(tmp_path)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


def test_saving_twice_after_a_step_writes_once_unless_the_state_changed(tmp_path: Path) -> None:
    step, _ = stepped()
    assert step.save(tmp_path) == step.save(str(tmp_path))
    torch.randn(1)
    with pytest.raises(BadInput, match="the folder already has another checkpoint"):
        step.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    step, _ = stepped()
    for _ in range(5):
        step(*batch())
        step.save(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000004", "step-00000005"]
    with pytest.raises(BadInput, match="keep is 0"):
        step.save(tmp_path, keep=0)
    assert step.load(tmp_path / "step-00000004").name == "step-00000004"
    assert step.taken + step.skipped == 4


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP32])
def test_another_plan_is_refused_with_the_difference_unless_any_plan_is_given(
    tmp_path: Path, precision: Precision
) -> None:
    step, _ = stepped()
    for number in range(3):
        step(*batch(number))
    step.save(tmp_path)
    policy = FULL_PRECISION if precision is Precision.FP32 else Policy(precision=precision)
    other, _ = stepped(policy=policy, loss_scale=LossScale.none())
    before = everything(other)
    with pytest.raises(BadInput, match=r"has another plan: .*f16 -> \w+") as refusal:
        other.load(tmp_path)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in everything(other).items())
    other.load(tmp_path, any_plan=True)
    state = everything(step)
    for key, value in everything(other).items():
        assert torch.equal(value, state[key]), key
    assert float(other(*batch())) == pytest.approx(float(step(*batch())), rel=0.5)


def test_another_graph_and_another_model_are_refused(tmp_path: Path) -> None:
    def wide(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

    stepped(model=wide(16))[0].save(tmp_path)
    other, _ = stepped(model=wide(24))
    with pytest.raises(BadInput, match="numbers in the checkpoint and"):
        other.load(tmp_path)
    with pytest.raises(BadInput, match=r"model.0.\w+ is float32\[16(, 8)?\] in the checkpoint"):
        other.load(tmp_path, any_plan=True)
    deeper, _ = stepped(model=nn.Sequential(wide(16), nn.Linear(4, 4)))
    with pytest.raises(BadInput, match="the checkpoint lacks 'model"):
        deeper.load(tmp_path, any_plan=True)


def test_other_options_another_optimizer_and_another_scale_are_refused(tmp_path: Path) -> None:
    stepped()[0].save(tmp_path)
    other, _ = stepped(optimizer_of("AdamW", weight_decay=0.5))
    with pytest.raises(BadInput, match=r"weight_decay of parameter group 0 is 0\.01"):
        other.load(tmp_path)
    other.load(tmp_path, any_plan=True)
    with pytest.raises(BadInput, match=r"is of AdamW with 2 .* this step is of Adam with 2"):
        stepped(optimizer_of("Adam"))[0].load(tmp_path, any_plan=True)
    with pytest.raises(BadInput, match="was trained with LossScale"):
        stepped(loss_scale=LossScale())[0].load(tmp_path)


def test_other_saved_states_must_be_requested_when_loading(tmp_path: Path) -> None:
    step, optimizer = stepped()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step.save(tmp_path / "with", scheduler=scheduler)
    step.save(tmp_path / "without")
    with pytest.raises(BadInput, match="the state of 'scheduler', but load"):
        step.load(tmp_path / "with")
    with pytest.raises(BadInput, match="holds no state of scheduler"):
        step.load(tmp_path / "without", scheduler=scheduler)
    average = nn.Linear(2, 2)
    step.save(tmp_path / "average", average=average)
    kept = average.weight.detach().clone()
    nn.init.zeros_(average.weight)
    step.load(tmp_path / "average", average=average)
    assert torch.equal(average.weight, kept)


def test_a_state_that_json_and_safetensors_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"a": object()}

        load_state_dict = dict

    with pytest.raises(BadInput, match=r"the state of also\.odd holds <object"):
        stepped()[0].save(tmp_path, odd=Odd())
    assert not list(tmp_path.iterdir())


def test_a_state_comes_back_as_it_was() -> None:
    state = {
        "a": (1, 2.5, [None, True], float("inf")),
        3: Counter({5: 2}),
        "t": torch.arange(3),
        "deep": {"": {None: "x"}},
    }
    tensors: dict[str, torch.Tensor] = {}
    found = unpack(pack(state, "n", tensors), tensors)
    assert torch.equal(found.pop("t"), state.pop("t"))  # type: ignore[arg-type]
    assert found == state
    assert type(found[3]) is Counter


def test_a_plain_state_dict_and_a_scaler_state_still_load() -> None:
    """The three states of any PyTorch script load without a checkpoint."""
    step, optimizer = stepped()
    for number in range(4):
        step(*batch(number))
    model = step._bound._model
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    seen = dict(model.named_buffers())["seen"].clone()
    scaler = torch.amp.GradScaler("cpu", **SCALER)
    scaler.load_state_dict(step.scaler_state())
    other, theirs = stepped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other._bound._model.load_state_dict(weights)
        theirs.load_state_dict(optimizer.state_dict())
        other.load_scaler_state(scaler.state_dict())
    dict(other._bound._model.named_buffers())["seen"].copy_(seen)
    torch.manual_seed(1)
    expected = [float(step(*batch(number))) for number in range(4)]
    torch.manual_seed(1)
    assert [float(other(*batch(number))) for number in range(4)] == expected
    assert other.scaler_state() == step.scaler_state()


SCALER: dict[str, Any] = {"init_scale": 2.0**17, "growth_interval": 2}


def test_with_another_rule_a_step_keeps_its_own_scale(tmp_path: Path) -> None:
    step, _ = stepped()
    for number in range(3):
        step(*batch(number))
    step.save(tmp_path)
    other, _ = stepped(loss_scale=LossScale.static(8.0))
    other.load(tmp_path, any_plan=True)
    assert other.loss_scale == 8.0
    assert (other.taken, other.skipped) == (step.taken, step.skipped)


@pytest.mark.parametrize(("floor", "loads"), [(1.0, True), (2.0**-30, False)])
def test_a_lower_floor_of_the_loss_scale_takes_over_a_checkpoint(
    tmp_path: Path, floor: float, loads: bool
) -> None:
    stepped(loss_scale=LossScale(floor=floor))[0].save(tmp_path)
    step, _ = stepped(loss_scale=LossScale())
    if loads:
        step.load(tmp_path)
    else:
        with pytest.raises(BadInput, match="was trained with LossScale"):
            step.load(tmp_path)
