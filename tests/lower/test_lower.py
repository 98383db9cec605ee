"""Lowering: pseudo FP16 really computes in FP32, state is written in place, both backends agree."""

from __future__ import annotations

import copy
from typing import Any
from uuid import uuid4

import pytest
import torch
from programs.small_step import batch, compiled, loss, net
from torch._dynamo.utils import counters
from torch._inductor import config, metrics
from torch.compiler import config as compiler_config

import mpcompile
from mpcompile import LossScale
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tracing import DispatchMode

ARITHMETIC = {"mm", "addmm", "bmm", "relu", "native_layer_norm", "add", "sum", "threshold_backward"}


class Watch(DispatchMode):
    """Notes which arithmetic ops saw 16-bit tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrow: set[str] = set()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ARITHMETIC:
            self.seen.add(name)
            if any(isinstance(a, torch.Tensor) and a.dtype is torch.float16 for a in args):
                self.narrow.add(name)
        return func(*args, **(kwargs or {}))


def test_the_interpreter_on_a_cpu_never_computes_in_16_bits() -> None:
    step = compiled(net())
    with Watch() as watch:
        step(*batch())
    assert watch.seen >= {"mm", "addmm", "native_layer_norm"}
    assert watch.narrow == set()


def test_pseudo_fp16_rounds_every_stored_result() -> None:
    step = compiled(net())
    gradients = step.gradients(*batch())
    scale = step.loss_scale
    for name in step.step.working:
        scaled = gradients[name] * scale
        assert torch.equal(scaled, scaled.half().float()), name


def test_state_is_written_in_place() -> None:
    step = compiled(net())
    before = {name: value.data_ptr() for name, value in step._state.items()}
    for seed in range(3):
        step(*batch(seed))
    assert {name: value.data_ptr() for name, value in step._state.items()} == before


def test_an_accelerator_never_reads_a_number() -> None:
    model = net()
    workload = Workload(model, batch(), loss, torch.optim.AdamW(model.parameters()))
    step = transform(workload).step
    assert step is not None
    update = copy_graph(step.update)
    assert any(op_name(node) == "_local_scalar_dense" for node in update.graph.nodes)
    numbers_to_tensors(update)
    names = {op_name(node) for node in update.graph.nodes}
    assert "_local_scalar_dense" not in names
    assert "_local_scalar_dense" not in {op_name(node) for node in step.gradient.graph.nodes}
    assert all(
        isinstance(node.meta["val"], torch.Tensor)
        for node in update.graph.nodes
        if node.op == "call_function"
    )


def test_inductor_and_the_interpreter_agree() -> None:
    left, right = net(), net()
    one = compiled(left, backend="interpreter", policy=mpcompile.FULL_PRECISION)
    two = compiled(right, backend="inductor", policy=mpcompile.FULL_PRECISION)
    for seed in range(4):
        torch.testing.assert_close(one(*batch(seed)), two(*batch(seed)), rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        if name != "one.bias":  # batch norm makes its gradient rounding noise, AdamW makes it lr
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_inductor_skips_a_step_too() -> None:
    model = net()
    step = compiled(model, backend="inductor", loss_scale=LossScale())
    x, y = batch()
    step(x, y)
    before = copy.deepcopy(model.state_dict())
    step(x * float("inf"), y)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (step.taken, step.skipped, step.loss_scale) == (1, 1, 2.0**15)


def test_a_second_compilation_takes_its_code_from_torchs_cache() -> None:
    # No graph of another test or run has this tag; the C++ of their kernels is found again.
    with compiler_config.patch(cache_key_tag=uuid4().hex):  # type: ignore[attr-defined]
        hits = []
        for _ in range(2):
            counters.clear()
            compiled(net(), backend="inductor")(*batch())
            hits.append(counters["inductor"]["fxgraph_cache_hit"])
    # Forward, backward, the numbers of the update, the update.
    assert hits == [0, 4]
    assert counters["inductor"]["fxgraph_cache_bypass"] == 0


def test_options_reach_inductor() -> None:
    def kernels(**options: object) -> int:
        metrics.reset()
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = mpcompile.compile(model, loss, optimizer, batch(), backend="inductor", **options)  # type: ignore[arg-type]
        step(*batch())
        return metrics.generated_kernel_count

    with config.patch(fx_graph_cache=False):
        assert kernels(options={"max_fusion_size": 1}) > kernels()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(mpcompile.BadInput, match="did you mean 'max_autotune'"):
        compiled(net(), backend="inductor", options={"max_autotun": True})


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(mpcompile.BadInput, match="no backend 'tpu'"):
        compiled(net(), backend="tpu")
