"""Recurrent layers become single ops, with PyTorch's own dropout between them."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from nets import recurrent
from nets.recurrent import KINDS, Recurrent, loss
from oracles import cudnn_on_cpu
from programs.graphs import run
from torch import nn

from mpcompile import pipeline
from mpcompile.lower.lower import Lowering
from mpcompile.passes.forward.keep_cudnn_rnn import KeepCudnnRnn
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.program.capture import Forward, capture
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tensors import fake_mode

STEPS, BATCH, FEATURES, CELLS = 4, 3, 5, 6
ON_CPU = KeepCudnnRnn("cpu")


@pytest.fixture(autouse=True)
def _cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn_on_cpu.install()
    monkeypatch.setattr(pipeline, "BEFORE_AUTOGRAD", (ON_CPU,))


def layers(kind: str, number: int = 3, **options: Any) -> Recurrent:
    return Recurrent(kind, FEATURES, CELLS, number, **options)


def workload(model: nn.Module, steps: int = STEPS) -> Workload:
    torch.manual_seed(1)
    x = torch.randn(steps, BATCH, FEATURES)
    return Workload(model, (x,), loss, torch.optim.SGD(model.parameters(), lr=0.1))


def captured(kind: str, **options: Any) -> tuple[Forward, list[torch.Tensor]]:
    torch.manual_seed(0)
    forward = capture(workload(layers(kind, **options)))
    # As in training: where nothing needs a gradient, a CPU rounds otherwise.
    return forward, [item.tensor.detach().requires_grad_() for item in forward.inputs]


def test_dropout_comes_between_two_layers() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.GRU(5, 6, 2, dropout=0.1)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layers(x, state)[1]
            return result

    module = capture(Workload(Last(), (torch.randn(4, 3, 5), torch.randn(2, 3, 6)))).module
    assert ON_CPU(module) == 1
    module.graph.eliminate_dead_code()
    assert_expected_inline(
        graph_text(module.graph),
        """\
p_model_layers_weight_ih_l0  f32[18,5]   input
p_model_layers_weight_hh_l0  f32[18,6]   input
p_model_layers_bias_ih_l0    f32[18]     input
p_model_layers_bias_hh_l0    f32[18]     input
p_model_layers_weight_ih_l1  f32[18,6]   input
p_model_layers_weight_hh_l1  f32[18,6]   input
p_model_layers_bias_ih_l1    f32[18]     input
p_model_layers_bias_hh_l1    f32[18]     input
batch_0                      f32[4,3,5]  input
batch_1                      f32[2,3,6]  input
slice_tensor                 f32[1,3,6]  slice batch_1 0 0 1
cudnn_rnn_default            tuple       cudnn_rnn batch_0 [p_model_layers_weight_ih_l0,p_model_layers_weight_hh_l0,p_model_layers_bias_ih_l0,p_model_layers_bias_hh_l0] slice_tensor None 3 1 False False
getitem_2                    f32[4,3,6]  getitem cudnn_rnn_default 0
getitem_3                    f32[1,3,6]  getitem cudnn_rnn_default 1
dropout_default              f32[4,3,6]  dropout getitem_2 0.1 True
slice_tensor_1               f32[1,3,6]  slice batch_1 0 1 2
cudnn_rnn_default_1          tuple       cudnn_rnn dropout_default [p_model_layers_weight_ih_l1,p_model_layers_weight_hh_l1,p_model_layers_bias_ih_l1,p_model_layers_bias_hh_l1] slice_tensor_1 None 3 1 False False
getitem_6                    f32[1,3,6]  getitem cudnn_rnn_default_1 1
cat_default                  f32[2,3,6]  cat [getitem_3,getitem_6]
return                                   cat_default""",
    )
    assert ON_CPU(module) == 0


@pytest.mark.parametrize(
    ("kind", "dropout", "batch_first", "bidirectional"),
    list(product(KINDS, (0.0, 0.5), (False, True), (False, True))),
)
def test_it_draws_and_computes_what_pytorch_does(
    kind: str, dropout: float, batch_first: bool, bidirectional: bool
) -> None:
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    forward, inputs = captured(kind, dropout=dropout, **options)
    torch.manual_seed(2)
    (before,) = run(forward.module, *inputs)
    assert ON_CPU(forward.module) == 1
    counts = Counter(op_name(node) for node in forward.module.graph.nodes)
    assert (counts["cudnn_rnn"], counts["dropout"]) == ((3, 2) if dropout else (1, 0))
    torch.manual_seed(2)
    (after,) = run(forward.module, *inputs)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("kind", "bias", "bidirectional"), list(product(KINDS, (False, True), (False, True)))
)
def test_in_fp32_it_trains_as_in_plain_pytorch(kind: str, bias: bool, bidirectional: bool) -> None:
    torch.manual_seed(0)
    mine = layers(kind, dropout=0.5, bias=bias, bidirectional=bidirectional)
    peer = copy.deepcopy(mine)
    step = pipeline.to_step(pipeline.transform(workload(mine), Choices(policy=FULL_PRECISION)))
    given = workload(peer)
    assert given.optimizer is not None
    torch.manual_seed(3)
    found = [float(step(*given.batch)) for _ in range(3)]
    torch.manual_seed(3)
    expected = []
    for _ in range(3):
        value = loss(peer, *given.batch)
        given.optimizer.zero_grad()
        torch.autograd.backward(value)
        given.optimizer.step()
        expected.append(float(value.detach()))
    assert found == expected
    for left, right in zip(mine.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_layer_in_eval_mode_draws_nothing_and_still_trains() -> None:
    model = layers("lstm", dropout=0.5).eval()
    transformed = pipeline.transform(workload(model))
    assert transformed.step is not None
    names = Counter(op_name(node) for node in transformed.step.gradient.graph.nodes)
    assert (names["cudnn_rnn"], names["cudnn_rnn_backward"], names["bernoulli"]) == (1, 1, 0)


def test_the_graph_does_not_grow_with_time() -> None:
    sizes = []
    for steps in (4, 40):
        transformed = pipeline.transform(workload(layers("lstm", dropout=0.5), steps))
        assert transformed.changes["keep_cudnn_rnn"] == 1
        assert transformed.step is not None
        graph = transformed.step.gradient.graph
        names = Counter(op_name(node) for node in graph.nodes)
        assert (names["cudnn_rnn"], names["cudnn_rnn_backward"]) == (3, 3)
        sizes.append(len(graph.nodes))
    assert sizes[0] == sizes[1]


def test_the_user_still_sees_the_whole_layer() -> None:
    transformed = pipeline.transform(workload(layers("gru")))
    names = [op_name(node) for node in transformed.forward.module.graph.nodes]
    assert "gru" in names
    assert "cudnn_rnn" not in names


def test_backward_knows_the_line_and_module_it_comes_from() -> None:
    step = pipeline.transform(workload(layers("gru", dropout=0.5))).step
    assert step is not None
    for node in step.gradient.graph.nodes:
        if op_name(node) in ("cudnn_rnn", "cudnn_rnn_backward", "bernoulli"):
            assert node.meta["where"].module == "layers", node
            assert node.meta["where"].file == recurrent.__file__, node


def test_pseudo_fp16_rounds_the_operands_and_results_of_a_layer() -> None:
    torch.manual_seed(0)
    model = layers("lstm")
    given = workload(model)
    half = pipeline.to_step(pipeline.transform(copy.deepcopy(given), Choices(policy=Policy())))
    full = pipeline.to_step(pipeline.transform(given, Choices(policy=FULL_PRECISION)))
    left, right = half.gradients(*given.batch), full.gradients(*given.batch)
    for name, value in left.items():
        assert not torch.equal(value, right[name]), name
        error = (value - right[name]).norm() / right[name].norm()
        assert error < 16 * 2.0**-11, name


def test_inductor_hands_the_reserve_to_backward_as_it_is() -> None:
    torch.manual_seed(0)
    model = layers("lstm", batch_first=True, bidirectional=True)
    given = workload(model)
    peer = copy.deepcopy(given)
    compiled = pipeline.to_step(pipeline.transform(given), Lowering(backend="inductor"))
    plain = pipeline.to_step(pipeline.transform(peer, Choices(policy=FULL_PRECISION)))
    for _ in range(2):
        torch.testing.assert_close(
            compiled(*given.batch), plain(*peer.batch), rtol=2.0**-8, atol=2.0**-10
        )
    assert compiled.taken == 2


def test_elsewhere_and_without_cudnn_nothing_changes() -> None:
    module = captured("lstm")[0].module
    text = graph_text(module.graph)
    assert KeepCudnnRnn()(module) == 0
    with torch.backends.cudnn.flags(enabled=False):
        assert ON_CPU(module) == 0
    assert graph_text(module.graph) == text


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of PyTorch with CUDA")
def test_on_fake_cuda_tensors_of_16_bits() -> None:
    with fake_mode(), torch.device("cuda"):
        model = layers("projected lstm", dropout=0.1, bidirectional=True)
        given = Workload(model, (torch.empty(STEPS, BATCH, FEATURES),))
        module = copy_graph(pipeline.transform(given).forward.module)
        assert KeepCudnnRnn()(module) == 1
    op = torch.ops.mpcompile.cudnn_rnn.default
    nodes = module.graph.find_nodes(op="call_function", target=op)
    assert len(nodes) == 3
    for node in nodes:
        output, hy, cy, reserve = node.meta["val"]
        assert {output.dtype, hy.dtype, cy.dtype} == {torch.float16}
        assert {value.device.type for value in node.meta["val"]} == {"cuda"}
        assert reserve.dtype is torch.uint8


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_two_equal_calls_keep_a_reserve_each(backend: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.GRU(FEATURES, CELLS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.layers(x)[0], self.layers(x)[0]
            result: torch.Tensor = (first * 2 + second.tanh()).mean()
            return result

    torch.manual_seed(0)
    given = workload(Twice())
    peer = copy.deepcopy(given.model)
    step = pipeline.to_step(
        pipeline.transform(given, Choices(policy=FULL_PRECISION)), Lowering(backend=backend)
    )
    found = step.gradients(*given.batch)
    loss(peer, *given.batch).backward()
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
