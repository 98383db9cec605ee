"""Writes and reads without gradients: buffers, teachers, clipped weights, spectral norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, CannotCapture, LossScale, Policy, SideEffect

BATCHES = batches(12, (6, 8), (6, 8))
Tensor = torch.Tensor


class Net(nn.Module):
    """Two linear layers with a centre; `middle` computes between them."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("centre", torch.zeros(16))
        self.register_buffer("bank", torch.zeros(4, 16))
        self.centre: Tensor
        self.bank: Tensor
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self, self.first(x)))
        return result


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = ((model(x) - y) ** 2).mean()
    return result


def in_place(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        net.centre.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h * net.centre.tanh()


def copied(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        net.centre.copy_(0.9 * net.centre + 0.1 * h.mean(0))
    return h - net.centre


def through_a_view(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        net.bank[1:3] += h[:2]
        net.bank[0] = h.mean(0)
    return h + net.bank.mean(0) * h


def assigned(net: Net, h: Tensor) -> Tensor:
    net.centre = 0.9 * net.centre + 0.1 * h.detach().mean(0)
    return h * net.centre.cos()


def assigned_without_gradients(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        net.centre = 0.9 * net.centre + 0.1 * h.mean(0)
    return h * net.centre.cos()


def data(net: Net, h: Tensor) -> Tensor:
    net.centre.data.mul_(0.9).add_(h.data.mean(0), alpha=0.1)
    return h * net.centre + h.data


def activation(net: Net, h: Tensor) -> Tensor:
    h = h * 1.5
    with torch.no_grad():
        h.clamp_(-0.5, 0.5)  # the gradient does not see it
    return h.sin()


def activation_twice(net: Net, h: Tensor) -> Tensor:
    h = h * 1.5
    with torch.no_grad():
        h.mul_(2).round_()
        h.add_(0.25)
    return h.sin()


def activation_and_view(net: Net, h: Tensor) -> Tensor:
    return through_a_view(net, activation_twice(net, h))


def grad_inside(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        before = h * 2
        with torch.enable_grad():
            inner = h.sin()
        after = inner * 3
    return before + inner + after


def decorated(net: Net, h: Tensor) -> Tensor:
    @torch.no_grad()
    def statistics(value: Tensor) -> Tensor:
        return value.std(0, keepdim=True)

    return h / (statistics(h) + 1)


@pytest.mark.parametrize("middle", [in_place, copied, through_a_view, assigned,
                                    assigned_without_gradients, data, activation, activation_twice,
                                    activation_and_view,
                                    grad_inside, decorated])  # fmt: skip
def test_in_fp32_it_trains_bitwise_as_in_eager_pytorch(
    middle: Callable[[Any, Tensor], Tensor],
) -> None:
    pair = SideBySide(Net(middle), squared, BATCHES[0])
    pair.train(BATCHES)
    assert pair.differing() == []


@pytest.mark.parametrize("middle", [in_place, through_a_view, assigned])
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"dynamic": True}])
def test_with_other_options(
    middle: Callable[[Any, Tensor], Tensor], options: dict[str, Any]
) -> None:
    pair = SideBySide(Net(middle), squared, BATCHES[0], **options)
    pair.train(BATCHES)
    assert pair.differing() == []


class Teacher(nn.Module):
    """A student and a teacher that follows it, as in BYOL, MoCo and DINO."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for theirs, mine in pairs:
                theirs.mul_(0.9).add_(mine, alpha=0.1)
            target = self.teacher(y)
        result: Tensor = ((self.student(x) - target) ** 2).mean()
        return result


class DataTeacher(Teacher):
    """The same with ``data`` and a teacher whose parameters require gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher.requires_grad_(True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for theirs, mine in pairs:
            theirs.data = theirs.data * 0.9 + mine.data * 0.1
        result: Tensor = ((self.student(x) - self.teacher(y).detach()) ** 2).mean()
        return result


def own_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = model(x, y)
    return result


def students(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(parameters)[:4], lr=1e-2)


@pytest.mark.parametrize("kind", [Teacher, DataTeacher])
def test_a_teacher_follows_its_student(kind: type[Teacher]) -> None:
    pair = SideBySide(kind(), own_loss, BATCHES[0], students)
    pair.train(BATCHES)
    assert pair.differing() == []


def test_inductor_follows_eager_pytorch() -> None:
    pair = SideBySide(Teacher(), own_loss, BATCHES[0], students, backend="inductor")
    pair.train(BATCHES)
    assert pair.distance() < 1e-4


def test_a_skipped_step_leaves_the_teacher() -> None:
    model = Teacher()
    scale = LossScale(initial=2.0**120, ceiling=2.0**121)
    optimizer = students(model.parameters())
    step = mpcompile.compile(
        model, own_loss, optimizer, BATCHES[0], policy=Policy(), loss_scale=scale
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(*BATCHES[0])
    assert step.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Looks(nn.Module):
    """An embedding that keeps its rows short, a weight with spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(10, 8, max_norm=0.5)
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16))
        self.last = nn.utils.spectral_norm(nn.Linear(16, 8))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x + self.rows(index)).tanh())
        return result


def looked_up(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
    result: Tensor = (model(x, index) ** 2).mean()
    return result


def test_embeddings_with_a_largest_norm_and_spectral_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(x, torch.randint(0, 10, (6,), generator=generator)) for x, _ in BATCHES]
    pair = SideBySide(Looks(), looked_up, data[0])
    pair.train(data)
    assert pair.differing() == []


def refused(middle: Callable[[Any, Tensor], Tensor], message: str) -> None:
    net = Net(middle)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match=message) as caught:
        mpcompile.compile(net, squared, optimizer, BATCHES[0])
    assert "test_grad_modes.py" in str(caught.value)


def test_a_part_of_an_activation_written_without_gradients_is_refused() -> None:
    def middle(net: Net, h: Tensor) -> Tensor:
        h = h * 1.5
        with torch.no_grad():
            h[:, :4].clamp_(-0.1, 0.1)
        return h

    refused(middle, "a part of a tensor that requires a gradient is written without gradients")


def test_a_buffer_of_another_shape_is_no_graph_and_grows_in_pieces() -> None:
    def middle(net: Net, h: Tensor) -> Tensor:
        net.bank = torch.cat([net.bank, h.detach()])
        return h

    net = Net(middle)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match="replaces the buffer bank by a tensor of another"):
        mpcompile.compile(net, squared, optimizer, BATCHES[0], whole=True)
    eager = copy.deepcopy(net)
    theirs = torch.optim.SGD(eager.parameters(), lr=0.1)
    step = mpcompile.compile(net, squared, optimizer, BATCHES[0], policy=FULL_PRECISION)
    for batch in BATCHES[:3]:
        step(*batch)
        theirs.zero_grad()
        squared(eager, *batch).backward()
        theirs.step()
    assert step.captured.in_pieces
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)


def test_a_batch_that_the_program_writes_to_stays_as_it_is() -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        y[:, 1:] += 1.0
        return squared(model, x, y)

    model = nn.Linear(8, 8)
    eager = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(SideEffect, match=r"batch\.[01] is written by the program"):
        step = mpcompile.compile(model, loss, optimizer, BATCHES[0], policy=FULL_PRECISION)
    given = [value.clone() for value in BATCHES[1]]
    found = step(*given)
    for value, before in zip(given, BATCHES[1], strict=True):
        assert torch.equal(value, before)
    torch.testing.assert_close(found, loss(eager, *given).detach())
