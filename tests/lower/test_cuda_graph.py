"""The whole step as one CUDA graph: what is replayed, and what happens if it cannot be captured.

Without a GPU `torch.cuda` is played by stand-ins: a capture notes the function, a replay runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from programs.graphs import graph_of
from programs.small_step import compiled, net
from torch import fx, nn

import mpcompile
from mpcompile.lower.cuda_graph import WARM_UP, CapturedStep, obstacle
from mpcompile.lower.lower import full_accumulation


class Graph:
    """Plays `torch.cuda.CUDAGraph`: what ran under the capture is undone and can be replayed."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.values: list[torch.Tensor] = []

    def replay(self) -> None:
        assert self.step is not None
        self.step.add(self.values[0], into=self.step.captured)

    def reset(self) -> None:
        raise RuntimeError("an empty graph cannot be reset")


class Step:
    """A step that adds its batch to a state and returns the state."""

    def __init__(self) -> None:
        self.state, self.captured = torch.zeros(()), torch.zeros(())
        self.runs, self.broken, self.graph = 0, False, Graph()

    def __call__(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        self.runs += 1
        if self.broken and CAPTURING:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        if CAPTURING:
            CAPTURING[0].step, CAPTURING[0].values = self, list(batch)
            return [self.captured]
        return [self.add(batch[0], into=torch.zeros(()))]

    def add(self, value: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        self.state += value.sum()
        return into.copy_(self.state)


CAPTURING: list[Graph] = []


class Device:
    """Plays the parts of `torch.cuda` around a capture."""

    def __init__(self) -> None:
        self.streams: list[Any] = []
        self.states: list[Any] = []
        self.device = torch.device("cuda", 0)

    def clone_state(self) -> str:
        return "before"

    def graphsafe_set_state(self, state: str) -> None:
        self.states.append(state)

    @contextmanager
    def graph(self, graph: Graph, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        CAPTURING.append(graph)
        try:
            yield
        finally:
            CAPTURING.clear()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found)
    monkeypatch.setattr(torch.cuda, "set_stream", found.streams.append)
    monkeypatch.setattr(torch.cuda, "default_generators", [found])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    return found


def test_a_replayed_step_reads_the_new_batch_and_owns_its_loss(device: Device) -> None:
    step = Step()
    replayed = CapturedStep(step)
    losses = [replayed([torch.tensor(float(number))])[0] for number in range(1, 8)]
    assert [float(loss) for loss in losses] == [1, 3, 6, 10, 15, 21, 28]
    assert step.runs == WARM_UP + 1
    assert device.streams == []


def test_a_batch_of_another_size_runs_plainly_between_replays(device: Device) -> None:
    step = Step()
    replayed = CapturedStep(step, shapes=[torch.Size([1])])
    sizes = [1, 1, 2, 1, 1, 2, 1]
    losses = [replayed([torch.ones(size)])[0] for size in sizes]
    assert [float(loss) for loss in losses] == [1, 2, 4, 5, 6, 8, 9]
    assert step.runs == WARM_UP + 1 + sizes.count(2)


def test_a_capture_that_breaks_off_leaves_everything_as_it_was(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step()
    step.broken = True
    replayed = CapturedStep(step)
    with caplog.at_level(logging.WARNING, "mpcompile"):
        losses = [float(replayed([torch.tensor(1.0)])[0]) for _ in range(6)]
    assert losses == [1, 2, 3, 4, 5, 6]
    assert device.streams == [device]
    assert device.states == ["before"]
    assert [record.getMessage() for record in caplog.records] == [
        "the step is not replayed as a CUDA graph: operation not permitted when stream is capturing"
    ]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_what_waits_for_the_device_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    branches = torch.export.export(Branching(), (torch.ones(2),)).graph
    why = obstacle(graph_of(torch.sin, x=torch.ones(2)).graph, branches)
    assert why.startswith("cond")
    counting = fx.Graph()
    counting.call_function(torch.ops.aten.nonzero.default, (counting.placeholder("x"),))
    assert obstacle(counting).startswith("nonzero")
    assert obstacle(graph_of(torch.sin, x=torch.ones(2)).graph) == ""
    with caplog.at_level(logging.WARNING, "mpcompile"):
        replayed = CapturedStep(Step(), why)
    assert [float(replayed([torch.tensor(1.0)])[0]) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert "cond" in caplog.text


def test_no_step_of_a_plain_net_waits() -> None:
    for backend in ("interpreter", "inductor"):
        step = compiled(net(), backend=backend, policy=mpcompile.FULL_PRECISION)
        # On a CPU the interpreter reads numbers from tensors, which costs nothing there.
        assert (step._lowered.obstacle == "") == (backend == "inductor")


def test_accumulation_is_full_inside_and_put_back_after() -> None:
    cublas = torch.backends.cuda.matmul
    before = cublas.allow_fp16_reduced_precision_reduction
    with full_accumulation():
        assert not cublas.allow_fp16_reduced_precision_reduction
        assert not cublas.allow_bf16_reduced_precision_reduction
    assert cublas.allow_fp16_reduced_precision_reduction == before
