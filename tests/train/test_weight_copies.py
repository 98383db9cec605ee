"""One 16-bit copy per weight: a step that reads a weight reads the copy of the training step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets.two_steps import GATED, Gan, data, discriminate, gan, generate, optimizers, steps
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, Policy, Precision, TrainStep
from mpcompile.numerics.lockstep import moment
from mpcompile.program.casts import is_cast
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import placeholders
from mpcompile.step.liveness import state_bytes
from mpcompile.step.slots import Role

REAL, NOISE = data(0)
WEIGHTS = (Role.MASTER, Role.CONSTANT)
Batch = tuple[torch.Tensor, ...]


def casts_of_weights(step: TrainStep) -> int:
    """Count the casts of weights in a step's gradient graph."""
    nodes = placeholders(step.step.gradient.graph)
    return sum(
        is_cast(user) and user.meta["val"].dtype in NARROW
        for name, node in nodes.items()
        if step.step.slots[name].role in WEIGHTS
        for user in node.users
    )


def copies(step: TrainStep, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the 16-bit copies of weights that a step reads and does not train, by weight."""
    return {
        name.removesuffix(".working"): value
        for name, value in step.values(*batch).items()
        if step.step.slots[name].role is Role.SHARED
    }


def assert_up_to_date(step: TrainStep, batch: Batch, model: nn.Module) -> None:
    found = copies(step, batch)
    assert found
    for name, copy in found.items():
        assert torch.equal(copy, model.get_parameter(name).detach().to(copy.dtype)), name


def in_order(model: Gan, generator_first: bool) -> tuple[TrainStep, TrainStep]:
    if not generator_first:
        return steps(model, loss_scale=GATED)
    one, two = optimizers(model)
    second = mpcompile.compile(model, generate, two, (NOISE,), loss_scale=GATED)
    first = mpcompile.compile(model, discriminate, one, (REAL, NOISE), loss_scale=GATED)
    return first, second


@pytest.mark.parametrize("generator_first", [False, True])
def test_the_reading_step_reads_the_working_copies_of_the_training_step(
    generator_first: bool,
) -> None:
    first, second = in_order(gan(), generator_first)
    assert casts_of_weights(first) == casts_of_weights(second) == 0
    for reads, batch, trains, other in (
        (first, (REAL, NOISE), second, (NOISE,)),
        (second, (NOISE,), first, (REAL, NOISE)),
    ):
        found, working = copies(reads, batch), trains.values(*other)
        assert found
        for name, copy in found.items():
            assert copy.dtype is torch.float16
            assert copy.data_ptr() == working[f"{name}.working"].data_ptr(), name


def trained(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    second(NOISE)


def written(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    with torch.no_grad():
        model.get_parameter("generator.0.weight").mul_(1.5)


def loaded(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})


def written_unseen(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    model.get_parameter("generator.0.weight").data.mul_(1.5)
    first.refresh()


def written_unseen_by_the_other(
    model: Gan, first: TrainStep, second: TrainStep, folder: Path
) -> None:
    model.get_parameter("generator.0.weight").data.mul_(1.5)
    second.refresh()


def restored(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    first.save(folder)
    second(NOISE)
    first.load(folder)


def restored_by_the_other(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    second.save(folder)
    second(NOISE)
    second.load(folder)


def compiled_again(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    again = mpcompile.compile(model, generate, second._optimizer, (NOISE,), loss_scale=GATED)
    again(NOISE)
    copy = copies(first, (REAL, NOISE))["generator.0.weight"]
    working = again.values(NOISE)["generator.0.weight.working"]
    assert copy.data_ptr() == working.data_ptr()


def compiled_in_bf16(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    policy = Policy(precision=Precision.BF16)
    mpcompile.compile(model, generate, second._optimizer, (NOISE,), policy=policy)(NOISE)


def moved(model: Gan, first: TrainStep, second: TrainStep, folder: Path) -> None:
    weight = model.get_parameter("generator.3.weight")
    weight.data = weight.detach() * 3


EVENTS = [trained, written, loaded, written_unseen, written_unseen_by_the_other, restored,
          restored_by_the_other, moved, compiled_again, compiled_in_bf16]  # fmt: skip


def test_the_copies_are_up_to_date_after_every_event(tmp_path: Path) -> None:
    model = gan()
    first, second = steps(model, loss_scale=GATED)
    for number, event in enumerate(EVENTS):
        before = {name: copy.clone() for name, copy in copies(first, (REAL, NOISE)).items()}
        event(model, first, second, tmp_path / str(number))
        if event not in (restored, restored_by_the_other):
            now = copies(first, (REAL, NOISE))
            assert any(not torch.equal(now[name], copy) for name, copy in before.items()), event
        assert_up_to_date(first, (REAL, NOISE), model)
        first(REAL, NOISE)


def test_where_the_formats_differ_each_step_has_its_own_copy() -> None:
    model = gan()
    one, two = optimizers(model)
    bf16 = Policy(precision=Precision.BF16)
    first = mpcompile.compile(model, discriminate, one, (REAL, NOISE), loss_scale=GATED)
    second = mpcompile.compile(model, generate, two, (NOISE,), policy=bf16)
    for _ in range(3):
        second(NOISE)
        assert {c.dtype for c in copies(first, (REAL, NOISE)).values()} == {torch.float16}
        assert_up_to_date(first, (REAL, NOISE), model)
        first(REAL, NOISE)
        assert {c.dtype for c in copies(second, (NOISE,)).values()} == {torch.bfloat16}
        assert_up_to_date(second, (NOISE,), model)


def test_a_weight_trained_in_fp32_is_read_in_fp16() -> None:
    model = gan()
    one, two = optimizers(model)
    first = mpcompile.compile(model, discriminate, one, (REAL, NOISE), loss_scale=GATED)
    second = mpcompile.compile(model, generate, two, (NOISE,), policy=FULL_PRECISION)
    assert not copies(second, (NOISE,))
    for _ in range(2):
        second(NOISE)
        assert_up_to_date(first, (REAL, NOISE), model)


def frozen() -> tuple[nn.Sequential, list[TrainStep]]:
    """Two heads on a body that no step trains."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(16, 4))

    def loss_of(head: int) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
        def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            body, act = model.get_submodule("0"), model.get_submodule("1")
            value: torch.Tensor = model.get_submodule(str(head))(act(body(x))).square().mean()
            return value

        return loss

    return model, [
        mpcompile.compile(
            model, loss_of(head), torch.optim.SGD(model[head].parameters(), lr=0.1), (REAL,)
        )
        for head in (2, 3)
    ]


def test_a_frozen_weight_has_one_copy_for_all_steps() -> None:
    model, both = frozen()
    found = [copies(step, (REAL,)) for step in both]
    assert found[0].keys() == {"0.weight", "0.bias"}
    for name, copy in found[0].items():
        assert copy.data_ptr() == found[1][name].data_ptr()
    for step in both:
        assert casts_of_weights(step) == 0
        assert_up_to_date(step, (REAL,), model)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    for step in both:
        assert_up_to_date(step, (REAL,), model)
    model.get_parameter("0.weight").data = model.get_parameter("0.weight").detach() * 2
    for step in both:
        assert_up_to_date(step, (REAL,), model)
    late = torch.optim.SGD(model[0].parameters(), lr=0.1)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model.get_submodule("0")(x).square().mean()
        return value

    trainer = mpcompile.compile(model, loss, late, (REAL,))
    trainer(REAL)
    working = trainer.values(REAL)["0.weight.working"]
    for step in both:
        assert copies(step, (REAL,))["0.weight"].data_ptr() == working.data_ptr()


def test_a_batch_of_another_shape_reads_the_same_copies() -> None:
    model = gan()
    first, second = steps(model, loss_scale=GATED)
    small = REAL[:4], NOISE[:4]
    first(*small)
    second(NOISE)
    kept = copies(first, (REAL, NOISE))
    for name, copy in copies(first, small).items():
        assert copy.data_ptr() == kept[name].data_ptr()
    assert_up_to_date(first, small, model)


def test_no_copy_outlives_the_steps() -> None:
    model = gan()
    one, two = optimizers(model)
    first = mpcompile.compile(model, discriminate, one, (REAL, NOISE), loss_scale=GATED)
    second = mpcompile.compile(model, generate, two, (NOISE,), loss_scale=GATED)
    read = [weakref.ref(copy) for copy in copies(first, (REAL, NOISE)).values()]
    arenas = [
        weakref.ref(step._state[name])
        for step in (first, second)
        for name in step._state
        if name.startswith("arena") and name.endswith(".working")
    ]
    assert len(arenas) == 2
    del second
    gc.collect()
    written(model, first, first, Path())
    assert_up_to_date(first, (REAL, NOISE), model)
    first(REAL, NOISE)
    assert sum(copy() is not None for copy in arenas) == 1  # what is read lies beside now
    del first
    gc.collect()
    assert not any(copy() is not None for copy in [*arenas, *read])

    body, both = frozen()
    read = [weakref.ref(copy) for step in both for copy in copies(step, (REAL,)).values()]
    del both
    gc.collect()
    assert not any(copy() is not None for copy in read)
    assert body is not None


def test_a_weight_of_two_optimizers_is_named_when_the_first_step_runs() -> None:
    model = gan()
    one, _ = optimizers(model)
    last = torch.optim.SGD(model.discriminator[3].parameters(), lr=0.1)  # not the first of one's
    first = mpcompile.compile(model, discriminate, one, (REAL, NOISE), loss_scale=GATED)
    second = mpcompile.compile(model, discriminate, last, (REAL, NOISE), loss_scale=GATED)
    with pytest.raises(
        BadInput, match=r"^discriminator\.3\.weight now belongs to a step .* one of the two op"
    ):
        first(REAL, NOISE)
    second(REAL, NOISE)


def test_an_optimizer_can_be_loaded_after_its_step_was_compiled_again() -> None:
    model = gan()
    first, _ = steps(model, loss_scale=GATED)
    first(REAL, NOISE)
    optimizer = first._optimizer
    again = mpcompile.compile(model, discriminate, optimizer, (REAL, NOISE), loss_scale=GATED)
    again(REAL, NOISE)
    optimizer.load_state_dict(optimizer.state_dict())
    again(REAL, NOISE)
    assert {float(entry["step"]) for entry in optimizer.state.values()} == {3.0}


def test_a_node_by_node_run_reads_the_masters_for_the_copies() -> None:
    model = gan()
    first, second = steps(model, loss_scale=GATED)
    second(NOISE)
    held = moment(first, REAL, NOISE)
    read = [slot for slot in held.values if held.step.slots[slot].role is Role.SHARED]
    assert read
    for slot in read:
        weight = model.get_parameter(slot.removesuffix(".working"))
        assert torch.equal(held.masters[slot], weight)


def test_an_evaluation_reads_the_copies_at_their_present_storage() -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(8, 16), nn.Linear(16, 4)
    model = nn.Sequential(body, head)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x).square().mean()
        return value

    of_head = mpcompile.compile(
        model, loss, torch.optim.SGD(head.parameters(), lr=0.1), (REAL,), loss_scale=GATED
    )
    of_head.forward(REAL)
    of_body = mpcompile.compile(
        model, loss, torch.optim.SGD(body.parameters(), lr=0.1), (REAL,), loss_scale=GATED
    )
    for _ in range(3):
        of_body(REAL)
    with torch.no_grad():
        expected = model(REAL)
    assert torch.equal(of_head.forward(REAL), of_body.forward(REAL))
    torch.testing.assert_close(of_head.forward(REAL), expected, rtol=5e-3, atol=5e-3)


def test_memory_counts_a_copy_once() -> None:
    _, (step, _) = frozen()
    body = 8 * 16 + 16
    head = sum(
        slot.empty().nbytes for slot in step.step.slots.values() if slot.name.startswith("arena0.m")
    )
    whole = state_bytes(step.step)
    reads = whole - head - head // 2
    assert reads - 6 * body == sum(
        slot.empty().nbytes
        for slot in step.step.slots.values()
        if slot.role in (Role.SCALE, Role.TRACKER, Role.COUNTER, Role.REPORT)
    )
