"""Checkpoints of several processes: in the form of one, and fit for any number of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from joint_net import batch, compiled, everywhere, loss, made, mine, processes, state
from torch import distributed, nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput
from mpcompile.train.checkpoint_file import MANIFEST

folder = Path(sys.argv[1])


def refused(action: Any, *words: str) -> None:
    try:
        action()
    except BadInput as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"{words} was not refused")


def save_and_go_on(parallel: dict[str, Any]) -> None:
    """Resume is bit for bit, in the same way and from one process's checkpoint."""
    run = folder / "_".join(["run", *parallel])
    model, optimizer = made(batch_norm=True)
    step = compiled(model, optimizer, parallel)
    for seed in range(3):
        step(*mine(batch(seed)))
    saved = step.save(run)
    assert saved == run / "step-00000003"
    torch.rand(1 + distributed.get_rank())
    drawn = torch.get_rng_state()
    for seed in range(3, 6):
        step(*mine(batch(seed)))
    expected = state(step, model, optimizer)

    other, its = made(batch_norm=True)
    again = compiled(other, its, parallel)
    again(*mine(batch(9)))
    assert again.load(run) == saved
    torch.rand(1 + distributed.get_rank())
    assert torch.equal(torch.get_rng_state(), drawn), "each process has its own random numbers"
    for seed in range(3, 6):
        again(*mine(batch(seed)))
    found = state(again, other, its)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    everywhere(found)

    # One process takes it over; so do these from what one process has saved.
    one, alone = made(batch_norm=True)
    single = mpcompile.compile(one, loss, alone, batch(0))
    single.load(saved, any_plan=True)
    kept = {name: value.clone() for name, value in one.state_dict().items()}
    again.load(saved)
    with again.whole():
        assert all(torch.equal(v, kept[n]) for n, v in other.state_dict().items())
    apart = folder / f"one_{run.name}"
    if distributed.get_rank() == 0:
        single(*batch(3))
        single.save(apart)
    distributed.barrier()
    again.load(apart, any_plan=True)
    assert again.taken + again.skipped == 4
    everywhere(state(again, other, its))
    if distributed.get_rank() == 0:
        (saved / MANIFEST).write_text("{}")
    distributed.barrier()
    refused(lambda: again.load(saved), "manifest")


def gathered_over_micro_batches() -> None:
    """What waits for an update has another length in slices, and is no part of a checkpoint."""
    model, optimizer = made(batch_norm=True)
    step = compiled(model, optimizer, {"shard": True}, accumulate=2)
    for seed in range(2):
        step(*mine(batch(seed)))
    saved = step.save(folder / "gathered")
    alone, its = made(batch_norm=True)
    single = mpcompile.compile(alone, loss, its, batch(0), accumulate=2)
    single.load(saved, any_plan=True)
    with step.whole():
        kept = alone.state_dict()
        assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())
        refused(lambda: step(*mine(batch(0))), "inside step.whole()")


def what_is_in_slices() -> None:
    """Slices are never taken for the whole."""
    model, optimizer = made()
    step = compiled(model, optimizer, {"shard": True})
    step(*mine(batch(0)))
    refused(model.state_dict, "slices", "step.whole()")
    refused(model.enter.state_dict, "slices")
    refused(optimizer.state_dict, "slices")
    assert model(batch(0)[0]).isnan().all()
    with step.whole():
        assert loss(model, *batch(0)).isfinite()
        with torch.no_grad():
            model.enter.weight.mul_(0.5)
        halved = model.enter.weight.clone()
        moments = optimizer.state_dict()
    with step.whole():
        assert torch.equal(model.enter.weight, halved)
    optimizer.load_state_dict(moments)
    assert step.forward(batch(0)[0]).isfinite().all()
    weights = state(step, model, optimizer)
    fresh, its = made()
    other = compiled(fresh, its, {"shard": True})
    with other.whole():
        fresh.load_state_dict({n: v for n, v in weights.items() if n in fresh.state_dict()})
        its.load_state_dict(moments)
    for one in (step, other):
        one(*(v[:3] for v in mine(batch(1))))  # other shapes: one more graph
    wanted = state(step, model, optimizer)
    for name, value in state(other, fresh, its).items():
        assert torch.equal(value, wanted[name]), name
    refused(
        lambda: mpcompile.compile(model, loss, optimizer, batch(0)), "another step holds the weight"
    )


def what_cannot_be() -> None:
    """All processes say so."""
    ranks, rank = distributed.get_world_size(), distributed.get_rank()
    model, _ = made()
    matrices = torch.optim.Adafactor([model.enter.weight])
    refused(lambda: compiled(model, matrices, {"shard": True}), "Adafactor", "shard=True")
    uneven = nn.Sequential(nn.Linear(12, 5 + (rank == ranks - 1)))
    optimizer = torch.optim.SGD(uneven.parameters(), lr=0.1)
    refused(lambda: compiled(uneven, optimizer, {}), "another step than process 0")
    refused(lambda: mpcompile.data_parallel(reduce="int8"), "int8")
    refused(lambda: compiled(*made(), {"reduce": "float16"}, policy=FULL_PRECISION), "bfloat16")
    refused(lambda: compiled(*made(lr=1e-2 + rank), {}), "another step", "options")


def the_first_ones_state_is_that_of_all() -> None:
    """Though one process alone has trained before."""
    model, optimizer = made()
    if distributed.get_rank() == 0:
        loss(model, *batch(0)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    step = compiled(model, optimizer, {})
    step(*mine(batch(1)))
    found = state(step, model, optimizer)
    everywhere(found)
    assert found["0.step"] == 2


with processes():
    save_and_go_on({})
    save_and_go_on({"shard": True})
    gathered_over_micro_batches()
    what_is_in_slices()
    what_cannot_be()
    the_first_ones_state_is_that_of_all()
