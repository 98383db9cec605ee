"""The bound on a step's time: counted by hand, against torch's own counter, against the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf, prod
from typing import Any

import pytest
import torch
from programs.flows import FLOWS, Recurrent
from programs.graphs import WORKLOADS, graph_of
from root import ROOT
from torch import fx, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import mpcompile
from mpcompile import Workload
from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.dataflow import Where
from mpcompile.program import cudnn_rnn
from mpcompile.program.workload import load
from mpcompile.speed.devices import DEVICES, Device, this_cpu
from mpcompile.speed.flops import flops, least_flops
from mpcompile.speed.least_time import Bound, Kernel, bound, kernels
from mpcompile.step.graph import StepGraph, call, results, set_results
from mpcompile.step.slots import Role, Slot
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.graphs import rename
from mpcompile.torch_private.ops import scan_is_differentiable

ATEN = torch.ops.aten
MODELS = ROOT / "models"
SLOW = Device("slow", "1 FLOP/s, 1 byte/s, no cache", {torch.float32: 1.0}, 1.0, 0)

each_workload = pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)


def step_of(module: fx.GraphModule) -> StepGraph:
    """Take a recorded function as a gradient graph; nothing is updated."""
    graph = module.graph
    slots: dict[str, Slot] = {}
    output = graph.output_node()
    values: Any = output.args[0]
    output.meta["slots"] = tuple(f"result{place}" for place in range(len(values)))
    for node in graph.find_nodes(op="placeholder"):
        node.meta["slot"] = node.name
        shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
        slots[node.name] = Slot(node.name, Role.BATCH, shape, dtype)
    for name, node in zip(output.meta["slots"], values, strict=True):
        shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
        slots[name] = Slot(name, Role.GRADIENT, shape, dtype)
    nothing = fx.Graph()
    nothing.output(()).meta["slots"] = ()
    return StepGraph(module, fx.GraphModule({}, nothing), slots, ())


def only(function: Callable[..., torch.Tensor], **inputs: torch.Tensor) -> Kernel:
    """Return the one kernel of a function beside the update."""
    kernel, update = kernels(step_of(graph_of(function, **inputs)))
    assert (update.name, update.bytes, update.flops) == ("update", 0, 0)
    return kernel


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def half(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.float16)


def test_a_matmul_reads_its_operands_and_writes_its_result() -> None:
    kernel = only(lambda x, y: x @ y, x=zeros(3, 5), y=zeros(5, 7))
    assert (kernel.flops, kernel.reads, kernel.writes) == (2 * 3 * 5 * 7, 4 * (15 + 35), 4 * 21)
    assert (kernel.kind, kernel.stage, kernel.dtype) == ("mm", "forward", torch.float32)


def test_loops_before_and_behind_a_matmul_are_free() -> None:
    kernel = only(
        lambda x, y: torch.relu(x.sin() @ y.exp()).cos() * 2, x=zeros(3, 5), y=zeros(5, 7)
    )
    assert (kernel.reads, kernel.writes) == (4 * (15 + 35), 4 * 21)


def test_casts_count_where_their_side_is_narrow() -> None:
    kernel = only(lambda x, y: (half(x) @ half(y)).float(), x=zeros(3, 5), y=zeros(5, 7))
    assert (kernel.reads, kernel.writes, kernel.dtype) == (2 * (15 + 35), 2 * 21, torch.float16)
    wide = only(lambda x, y: x.float() @ y, x=half(zeros(3, 5)), y=zeros(5, 7))
    assert wide.reads == 2 * 15 + 4 * 35


def test_an_expanded_operand_is_read_once_and_so_are_two_views_of_one_memory() -> None:
    assert only(lambda x, y: x.expand(6, 5) @ y, x=zeros(1, 5), y=zeros(5, 7)).reads == 4 * (5 + 35)
    assert only(lambda x: x @ x.t(), x=zeros(3, 5)).reads == 4 * 15


def test_what_a_reduction_leaves_is_all_that_is_written() -> None:
    assert only(lambda x, y: (x @ y).sum(0), x=zeros(3, 5), y=zeros(5, 7)).writes == 4 * 7
    assert only(lambda x, y: (x @ y).sum(), x=zeros(3, 5), y=zeros(5, 7)).writes == 4


def test_between_two_matmuls_the_narrowest_tensor_crosses() -> None:
    first, second, _ = kernels(
        step_of(
            graph_of(
                lambda x, y, z: half((x @ y).sum(0, keepdim=True)).float().expand(3, 7) @ z,
                x=zeros(3, 5),
                y=zeros(5, 7),
                z=zeros(7, 2),
            )
        )
    )
    assert first.writes == 2 * 7
    assert second.reads == 2 * 7 + 4 * 14


def test_a_convolution_that_has_no_input_gradient_does_not_read_its_weight() -> None:
    workload = WORKLOADS["convolution"]()
    step = transform(workload).step
    assert step is not None
    (backward,) = (k for k in kernels(step) if k.kind == "convolution_backward")
    # The gradient of [2, 4, 5, 5], made of a relu's mask and a norm's statistics, and the image.
    assert backward.reads == 2 * (2 * 4 * 5 * 5) + 2 * (2 * 3 * 5 * 5)
    # The weight's gradient, and the bias's, which the same op makes.
    assert backward.writes == 2 * (4 * 3 * 3 * 3 + 4)


def test_time_is_the_slower_of_arithmetic_and_memory_and_a_cache_keeps_its_size() -> None:
    kernel = Kernel("mm", "mm", "forward", Where(), torch.float32, 100, 60, 30)
    assert kernel.seconds(SLOW) == 100
    assert kernel.seconds(replace(SLOW, rates={torch.float32: 10.0})) == 90
    assert kernel.memory(replace(SLOW, cache=40)) == 20
    assert kernel.memory(replace(SLOW, cache=60)) == 0
    found = Bound(SLOW, (kernel, replace(kernel, flops=1), replace(kernel, stage="update")))
    assert (found.arithmetic, found.memory, found.update, found.seconds) == (100, 90, 100, 290)


def test_a_causal_attention_computes_what_its_mask_shows() -> None:
    def node(queries: int, keys: int, causal: bool) -> fx.Node:
        graph = graph_of(
            lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal),
            q=zeros(1, 2, queries, 8),
            k=zeros(1, 2, keys, 8),
            v=zeros(1, 2, keys, 8),
        ).graph
        (found,) = (n for n in graph.nodes if n.name.endswith("for_cpu"))
        assert isinstance(found, fx.Node)
        return found

    for queries, keys in ((4, 4), (3, 5), (5, 3)):
        mask = torch.ones(queries, keys).tril()
        full = 2 * 2 * queries * keys * 8 * 2
        assert flops(node(queries, keys, causal=True)) == full
        assert least_flops(node(queries, keys, causal=False)) == full
        share = float(mask.sum()) / mask.numel()
        assert least_flops(node(queries, keys, causal=True)) == int(full * share)


def test_a_grouped_convolution_has_the_flops_of_its_groups() -> None:
    whole = nn.Conv2d(8, 8, 3, groups=4)
    part = nn.Conv2d(2, 2, 3)

    def counted(layer: nn.Module, channels: int) -> list[int]:
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(channels * 9, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batch = (torch.randn(2, channels, 5, 5),)
        step = transform(Workload(model, batch, lambda m, x: m(x).square().mean(), optimizer)).step
        assert step is not None
        return [k.flops for k in kernels(step) if k.kind.startswith("convolution")]

    assert counted(whole, 8) == [4 * count for count in counted(part, 2)]


def attention_formulas() -> dict[Any, Any]:
    """Return torch's own formulas for the CPU's attention, which its counter does not know."""

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    name = "_scaled_dot_product_flash_attention_for_cpu"
    return {getattr(ATEN, name): forward, getattr(ATEN, f"{name}_backward"): backward}


def eager_flops(workload: Workload) -> int:
    """Return what torch counts while one FP32 step runs in eager mode."""
    assert workload.loss is not None
    assert workload.optimizer is not None
    counter = FlopCounterMode(display=False, custom_mapping=attention_formulas())
    # The counter sees no FLOPs in oneDNN's recurrent layers, but all in what they stand for.
    with torch.backends.mkldnn.flags(enabled=False), counter:
        workload.loss(workload.model, *workload.batch).backward()
        workload.optimizer.step()
    return int(counter.get_total_flops())


def graph_flops(workload: Workload) -> int:
    step = transform(workload).step
    assert step is not None
    graphs = (step.gradient.graph, step.update.graph)
    return sum(flops(node) for graph in graphs for node in graph.nodes)


@each_workload
def test_flops_are_those_torch_counts_in_eager(make: Callable[[], Workload]) -> None:
    workload = make()
    assert graph_flops(workload) == eager_flops(workload) > 0


@pytest.mark.parametrize("model", ["gpt", "resnet", "lstm"])
def test_flops_of_the_models_are_those_torch_counts(model: str) -> None:
    workload = load(str(MODELS / f"{model}.py"))
    assert graph_flops(workload) == eager_flops(workload) > 0


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_a_recurrent_op_has_the_flops_of_its_layers(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(nn, kind)(6, 4, **options)
    x = torch.randn(5, 3, 6)
    counter = FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), counter:
        layer(x)
    first = torch.zeros(layer.num_layers * (1 + layer.bidirectional), 3, 4)
    cells = first if kind == "LSTM" else None
    mode = cudnn_rnn.MODES["rnn_tanh" if kind == "RNN" else kind.lower()]
    weights = list(layer.parameters())
    graph = fx.Graph()
    nodes = []
    for value in (x, *weights, first):
        nodes.append(graph.placeholder("x"))
        nodes[-1].meta["val"] = value
    args = (nodes[0], nodes[1:-1], nodes[-1], cells, mode, layer.num_layers, False)
    options_of_both = (*args, layer.bidirectional)
    forward = graph.call_function(torch.ops.mpcompile.cudnn_rnn.default, options_of_both)
    assert flops(forward) == counter.get_total_flops() > 0
    backward = graph.call_function(
        torch.ops.mpcompile.cudnn_rnn_backward.default,
        (nodes[0], nodes[0], None, None, None, *options_of_both),
    )
    assert flops(backward) == 2 * flops(forward)


@each_workload
def test_the_update_moves_each_byte_of_state_once_and_each_gradient_twice(
    make: Callable[[], Workload],
) -> None:
    step = transform(make()).step
    assert step is not None
    check, update = kernels(step)[-2:]
    assert (check.name, update.name) == ("check", "update")
    sizes = {name: prod(s.shape) * s.dtype.itemsize for name, s in step.slots.items()}
    gradients = sum(sizes[n] for n, s in step.slots.items() if s.role is Role.GRADIENT)
    written = results(step.update.graph)
    inputs = {node.meta["slot"] for node in step.update.graph.find_nodes(op="placeholder")}
    # A learning rate goes on as a Python number.
    read = {name for name in inputs if step.slots[name].role is not Role.HYPER}
    assert update.writes == sum(sizes[name] for name in written)
    if "matrices" not in make.__name__:  # Muon's check also reads the momentum it normalises
        assert check.bytes == gradients + sizes["loss_scale"]
        assert update.reads == sum(sizes[name] for name in read)


def test_adamw_in_fp16_moves_30_bytes_per_parameter() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    count = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    workload = Workload(model, (torch.randn(8, 64),), lambda m, x: m(x).square().mean(), optimizer)

    def moved(precision: mpcompile.Precision) -> int:
        step = transform(workload, Choices(policy=mpcompile.Policy(precision=precision))).step
        assert step is not None
        return sum(kernel.bytes for kernel in kernels(step) if kernel.stage == "update")

    rest = 100  # the step counters, the scale, the learning rate
    assert 30 * count < moved(mpcompile.Precision.FP16) < 30 * count + rest
    assert 28 * count < moved(mpcompile.Precision.BF16) < 28 * count + rest
    assert 28 * count < moved(mpcompile.Precision.FP32) < 28 * count + rest


def test_no_kernel_reads_a_weight_in_fp32_that_has_a_working_copy() -> None:
    workload = WORKLOADS["layered"]()
    step = transform(workload).step
    assert step is not None
    first = kernels(step)[0]
    assert first.reads == 2 * (2 * 4 + 6 * 4 + 6)  # [2, 4], [6, 4] and [6] in 16 bits


@each_workload
@pytest.mark.parametrize("device", [*DEVICES.values(), SLOW], ids=lambda device: device.name)
def test_a_graph_with_one_more_op_has_no_smaller_bound(
    make: Callable[[], Workload], device: Device
) -> None:
    step = transform(make()).step
    assert step is not None
    before = bound(step, device).seconds
    graph = step.gradient.graph
    values = results(graph)
    last = before
    for target in (ATEN.sin.default, ATEN.sum.default, ATEN.t.default):
        name, node = next((n, v) for n, v in values.items() if v.meta["val"].dim() == 2)
        with graph.inserting_before(graph.output_node()):
            added = call(graph, target, node)
            rename(added, "added")
        set_results(graph, {**results(graph), f"extra.{name}.{target}": added})
        now = bound(step, device).seconds
        assert now >= last
        last = now
    _, node = next((n, v) for n, v in values.items() if v.meta["val"].dim() == 2)
    with graph.inserting_before(graph.output_node()):
        turned = call(graph, ATEN.t.default, node)
        added = call(graph, ATEN.mm.default, node, turned)
    set_results(graph, {**results(graph), "extra.mm": added})
    assert bound(step, device).seconds > last


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_step_with_branches_and_loops_has_a_bound(make: Any) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    workload = Workload(model, (model.batch(),), lambda m, x: m(x).square().mean(), optimizer)
    if issubclass(make, Recurrent) and not scan_is_differentiable():
        pytest.skip("a scan cannot be trained by this torch")
    step = transform(workload).step
    assert step is not None
    assert 0 < bound(step, DEVICES["h100"]).seconds < inf


@pytest.fixture(scope="module")
def cpu() -> Device:
    return this_cpu()


@each_workload
def test_no_step_on_this_cpu_is_faster_than_its_bound(
    make: Callable[[], Workload], cpu: Device
) -> None:
    workload = make()
    transformed = transform(workload)
    assert transformed.step is not None
    least = bound(transformed.step, cpu).seconds
    step = to_step(transformed, Lowering(backend="interpreter"))
    seconds = inf
    for _ in range(3):
        begin = time.perf_counter()
        step(*workload.batch)
        seconds = min(seconds, time.perf_counter() - begin)
    assert least <= seconds


def test_the_table_of_devices() -> None:
    h100, h200, v100 = DEVICES["h100"], DEVICES["h200"], DEVICES["v100"]
    assert h100.rates == h200.rates
    assert h100.rate(torch.float16) == 2 * h100.rate(torch.float32)  # TF32
    assert v100.rate(torch.bfloat16) == v100.rate(torch.float32)
    assert v100.rate(torch.int8) == v100.rate(torch.float16)
    assert all(name == device.name for name, device in DEVICES.items())
