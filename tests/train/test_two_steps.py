"""Two steps on one model: a GAN, and a loss that uses a part of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nets.two_steps import GATED, Gan, data, discriminate, gan, generate, optimizers, steps

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, Policy, TrainStep


@pytest.mark.parametrize("scale", [LossScale.none(), GATED], ids=["plain", "scaled"])
def test_a_gan_in_fp32_is_the_eager_gan_to_the_last_bit(scale: LossScale) -> None:
    model, peer = gan(), gan()
    first, second = steps(model, policy=FULL_PRECISION, loss_scale=scale)
    one, two = optimizers(peer)
    for seed in range(10):
        real, noise = data(seed)
        one.zero_grad()
        expected = discriminate(peer, real, noise)
        torch.autograd.backward(expected)
        one.step()
        assert torch.equal(first(real, noise), expected.detach())
        two.zero_grad()
        expected = generate(peer, noise)
        torch.autograd.backward(expected)
        two.step()
        assert torch.equal(second(noise), expected.detach())
    for name, held in peer.state_dict().items():
        assert torch.equal(model.state_dict()[name], held), name


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_in_mixed_precision_each_step_sees_the_updates_of_the_other(backend: Any) -> None:
    """Each loss is close to that of FP32 on the same weights."""
    model, peer = gan(), gan()
    first, second = steps(model, policy=Policy(), loss_scale=GATED, backend=backend)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in range(10):
        real, noise = data(seed)
        peer.load_state_dict(model.state_dict())
        expected = discriminate(peer, real, noise)
        torch.testing.assert_close(first(real, noise), expected.detach(), rtol=5e-3, atol=5e-3)
        peer.load_state_dict(model.state_dict())
        expected = generate(peer, noise)
        torch.testing.assert_close(second(noise), expected.detach(), rtol=5e-3, atol=5e-3)
    moved = [
        name for name, value in model.named_parameters() if not torch.equal(value, start[name])
    ]
    assert len(moved) == len(list(model.parameters()))


def test_each_step_has_a_scale_of_its_own() -> None:
    model = gan()
    first, second = steps(model, loss_scale=GATED)
    real, noise = data(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first(real * float("inf"), noise)
    assert (first.loss_scale, second.loss_scale) == (2.0**7, 2.0**8)
    assert (first.skipped, second.skipped) == (1, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    second(noise)
    assert (second.taken, second.skipped) == (1, 0)
    second(noise * float("inf"))
    assert (first.loss_scale, second.loss_scale) == (2.0**7, 2.0**7)
    assert (first.taken, first.skipped, second.skipped) == (0, 1, 1)
    first(real, noise)
    assert (first.taken, first.skipped) == (1, 1)


def test_a_loss_that_touches_a_part_of_the_model_trains_that_part() -> None:
    model, peer = gan(), gan()
    noise = data(0)[1]

    def size(model: Gan, noise: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model.generator(noise).square().mean()
        return value

    step = mpcompile.compile(model, size, optimizers(model)[1], (noise,), policy=FULL_PRECISION)
    assert not any(name.startswith("discriminator") for name in step.step.slots)
    optimizer = optimizers(peer)[1]
    for _ in range(3):
        step(noise)
        optimizer.zero_grad()
        torch.autograd.backward(size(peer, noise))
        optimizer.step()
    for name, held in peer.state_dict().items():
        assert torch.equal(model.state_dict()[name], held), name


def test_a_resumed_gan_continues_bit_for_bit(tmp_path: Path) -> None:
    def go(both: tuple[TrainStep, TrainStep], seeds: range) -> list[float]:
        losses = []
        for seed in seeds:
            real, noise = data(seed)
            # One step overflows, so the two scales part.
            losses.append(float(both[0](real * (float("inf") if seed == 2 else 1), noise)))
            losses.append(float(both[1](noise)))
        return losses

    model, other = gan(), gan()
    both = steps(model, loss_scale=GATED)
    go(both, range(4))
    for name, step in zip(("critic", "artist"), both, strict=True):
        step.save(tmp_path / name)
    expected = go(both, range(4, 8))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5)
    again = steps(other, loss_scale=GATED)
    go(again, range(3, 5))
    for name, step in zip(("critic", "artist"), again, strict=True):
        step.load(tmp_path / name)
    assert go(again, range(4, 8)) == expected
    for mine, theirs in zip(both, again, strict=True):
        held, found = mine._bound.named(), theirs._bound.named()
        assert held.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in held.items())
        assert (mine.loss_scale, mine.skipped) == (theirs.loss_scale, theirs.skipped)
    assert both[0].loss_scale != both[1].loss_scale


def test_loading_a_checkpoint_reaches_both_steps() -> None:
    model, other = gan(), gan()
    first, second = steps(model)
    real, noise = data(0)
    first(real, noise)
    second(noise)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.125)
    model.load_state_dict(other.state_dict())
    fresh = steps(other)
    for mine, theirs, given in ((first, fresh[0], (real, noise)), (second, fresh[1], (noise,))):
        expected = theirs.gradients(*given)
        for name, gradient in mine.gradients(*given).items():
            assert torch.equal(gradient, expected[name]), name
