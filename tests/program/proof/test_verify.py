"""A captured graph that is not the program is refused, and nothing of the user's changes."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from programs.unfaithful import KINDS, Kind, Net, squares, workload
from torch import fx, nn

import mpcompile
from mpcompile import Unfaithful, Unverified, pipeline
from mpcompile.program.capture import Forward, capture
from mpcompile.program.proof import outcome
from mpcompile.program.proof import verify as proof
from mpcompile.program.proof.effects import Effects
from mpcompile.program.workload import Workload
from mpcompile.torch_private.ops import op_name

FP32 = mpcompile.FULL_PRECISION


def compiled(subject: Workload, **options: Any) -> mpcompile.TrainStep:
    assert subject.loss is not None
    assert subject.optimizer is not None
    return mpcompile.compile(
        subject.model, subject.loss, subject.optimizer, subject.batch, policy=FP32, **options
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_program_is_refused_or_captured_right(kind: Kind) -> None:
    """Either one sentence, or the step that eager PyTorch takes."""
    subject = workload(kind)
    eager = copy.deepcopy(subject.model)
    try:
        step = compiled(subject)
    except Unfaithful as error:
        assert kind.named in str(error)
        assert "verify=False" in str(error)
        assert compiled(subject, verify=False)(*subject.batch).isfinite()
        return
    except mpcompile.CannotCapture:
        return
    optimizer = torch.optim.Adam(eager.parameters())
    squares(eager, *subject.batch).backward()
    optimizer.step()
    step(*subject.batch)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(subject.model.state_dict()[name], value, msg=name)


Edit = Callable[[fx.Graph], None]


def _first(graph: fx.Graph, name: str) -> fx.Node:
    found: fx.Node = next(node for node in graph.nodes if op_name(node) == name)
    return found


def _scaled_gradient(graph: fx.Graph) -> None:
    """value -> value in forward, a tenth of it in backward."""
    node = _first(graph, "relu")
    with graph.inserting_after(node):
        kept = graph.call_function(torch.ops.aten.detach.default, (node,))
        kept.meta = dict(node.meta)
    with graph.inserting_after(kept):
        rest = graph.call_function(torch.ops.aten.sub.Tensor, (node, kept))
        tenth = graph.call_function(torch.ops.aten.mul.Tensor, (rest, 0.1))
        made = graph.call_function(torch.ops.aten.add.Tensor, (kept, tenth))
    for item, before in ((rest, kept), (tenth, rest), (made, tenth)):
        before.append(item)
        item.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in (kept, rest))


def _other_op(graph: fx.Graph) -> None:
    _first(graph, "relu").target = torch.ops.aten.tanh.default


PLANTED: dict[str, tuple[Edit, str]] = {
    "a tenth of a gradient": (_scaled_gradient, "the gradient of first.weight differs by 90 %"),
    "another op": (_other_op, "the loss is"),
}


def plant(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    def faulty(subject: Workload, *rest: Any) -> Forward:
        forward = capture(subject, *rest)
        edit(forward.module.graph)
        forward.module.recompile()
        return forward

    monkeypatch.setattr(pipeline, "capture", faulty)


@pytest.mark.parametrize(("edit", "said"), PLANTED.values(), ids=PLANTED)
def test_a_fault_planted_in_the_graph_is_found(
    monkeypatch: pytest.MonkeyPatch, edit: Edit, said: str
) -> None:
    plant(monkeypatch, edit)
    subject = workload(Kind(Net, ""))
    with pytest.raises(Unfaithful) as caught:
        compiled(subject)
    assert said in str(caught.value)
    assert "programs/unfaithful.py:" in str(caught.value.where)
    compiled(subject, verify=False)


def test_a_gradient_that_the_graph_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proof the compiler would blame the program for it."""

    def cut(graph: fx.Graph) -> None:
        node = _first(graph, "relu")
        with graph.inserting_after(node):
            made = graph.call_function(torch.ops.aten.detach.default, (node,))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    plant(monkeypatch, cut)
    with pytest.raises(Unfaithful, match=r"the gradient of first\.weight exists in eager PyTorch"):
        compiled(workload(Kind(Net, "")))


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.norm(self.fc(x)))
        return result


def drawing() -> Workload:
    torch.manual_seed(0)
    model = Drawing()
    return Workload(
        model, (torch.randn(8, 4),), squares, torch.optim.SGD(model.parameters(), lr=0.1)
    )


def test_a_mask_less_moves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def more_draws(graph: fx.Graph) -> None:
        node = _first(graph, "dropout")
        with graph.inserting_after(node):
            graph.call_function(torch.ops.aten.dropout.default, node.args).meta = dict(node.meta)

    plant(monkeypatch, more_draws)
    with pytest.raises(Unfaithful, match="the random state after the forward pass"):
        compiled(drawing())


def test_a_buffer_that_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(graph: fx.Graph) -> None:
        output = graph.output_node()
        results: Any = output.args[0]
        old = next(n for n in graph.find_nodes(op="placeholder") if "running_mean" in n.name)
        shapes = [tuple(item.meta["val"].shape) for item in results]
        position = shapes.index((4,))
        output.args = ((*results[:position], old, *results[position + 1 :]),)

    plant(monkeypatch, stale)
    with pytest.raises(Unfaithful, match=r"the next value of norm\.running_"):
        compiled(drawing())


def test_a_bias_before_a_batch_norm_is_noise_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order of the same sum changes all digits of a gradient that is zero in theory."""

    def reordered(graph: fx.Graph) -> None:
        node = _first(graph, "linear")
        value, weight, bias = node.args
        with graph.inserting_before(node):
            turned = graph.call_function(torch.ops.aten.flip.default, (value, [0]))
            made = graph.call_function(torch.ops.aten.linear.default, (turned, weight, bias))
            back = graph.call_function(torch.ops.aten.flip.default, (made, [0]))
        for item in (turned, made, back):
            item.meta = dict(node.meta)
        node.replace_all_uses_with(back)
        graph.erase_node(node)

    plant(monkeypatch, reordered)
    exact: list[bool] = []
    of_graph = outcome.of_graph

    def seen(*args: Any, **options: Any) -> Any:
        exact.append(options.get("exact", False))
        return of_graph(*args, **options)

    monkeypatch.setattr(proof, "of_graph", seen)
    compiled(drawing())
    assert exact == [False, True]


def state_of(subject: Workload) -> dict[str, Any]:
    model, optimizer = subject.model, subject.optimizer
    assert optimizer is not None
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: value.detach().clone() for name, value in tensors.items()},
        "versions": {name: value._version for name, value in tensors.items()},
        "ids": {name: id(value) for name, value in tensors.items()},
        "grads": {name: id(value.grad) for name, value in tensors.items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "batch": [value.clone() for value in subject.batch],
    }


def assert_same(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert one == other, path


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_users_changes(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    if fails:
        plant(monkeypatch, lambda graph: setattr(_first(graph, "dropout"), "args",
              (_first(graph, "dropout").args[0], 0.25, True)))  # fmt: skip
    subject = drawing()
    log: list[Any] = []
    subject.model.register_forward_hook(lambda module, given, made: log.append(made))
    subject.model.fc.register_full_backward_hook(  # type: ignore[union-attr]
        lambda module, given, made: log.append(made)
    )
    squares(subject.model, *subject.batch).backward()
    assert subject.optimizer is not None
    subject.optimizer.step()
    log.clear()
    before = state_of(subject)
    try:
        pipeline.transform(subject)
        assert not fails
    except Unfaithful:
        assert fails
    assert_same(before, state_of(subject))
    assert log == []


def test_an_optimizer_that_steps_in_a_hook_is_put_back() -> None:
    subject = workload(Kind(Net, ""))
    optimizer = subject.optimizer
    assert optimizer is not None
    squares(subject.model, *subject.batch).backward()
    optimizer.step()
    weight: Any = subject.model.second.weight  # type: ignore[union-attr]

    def step(parameter: torch.Tensor) -> None:
        assert optimizer is not None
        optimizer.step()
        optimizer.zero_grad()

    weight.register_post_accumulate_grad_hook(step)
    before = state_of(subject)
    with pytest.raises((Unfaithful, mpcompile.CannotCapture)):
        pipeline.transform(subject)
    assert_same(before, state_of(subject))


def test_a_graph_for_another_shape_is_verified_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    verify = proof.verify

    def noted(subject: Workload, forward: Forward, effects: Effects, **options: bool) -> None:
        seen.append(len(subject.batch[0]))
        verify(subject, forward, effects, **options)

    monkeypatch.setattr(pipeline, "verify_graph", noted)
    step = compiled(drawing())
    step(torch.randn(6, 4))
    step(torch.randn(6, 4))
    assert seen == [8, 6]
    assert step.taken == 2


def test_an_open_batch_size_and_results_beside_the_loss() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> Any:
        made = model(x)
        return made.pow(2).mean(), {"made": made, "count": x.shape[0]}

    compiled(replace(drawing(), loss=loss))
    compiled(drawing(), dynamic=True)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(proof, "of_program", full)
    with pytest.warns(Unverified, match="memory is too small"):
        compiled(drawing())


def test_a_program_that_fails_in_backward_is_the_users_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = workload(Kind(Net, ""))

    def broken(gradient: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such gradient")

    weight: Any = subject.model.second.weight  # type: ignore[union-attr]
    weight.register_hook(broken)
    with pytest.raises(mpcompile.CompileError, match="no such gradient"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Unverified)
        compiled(subject)
