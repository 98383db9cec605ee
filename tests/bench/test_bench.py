"""The benches' own arithmetic: casts, floating-point operations, bytes, tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programs.graphs import linear
from torch import nn

from bench.compile_time import growth
from bench.compile_time.capture import time_transform
from bench.speed import counts, step_table, update
from bench.speed.variant import TINY, load
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tensors import fake_mode


def test_an_eager_step_counts_casts_between_fp32_and_16_bits_only() -> None:
    x = torch.ones(4, 8, requires_grad=True)

    def step() -> torch.Tensor:
        y = x.bfloat16()  # 32 elements: 128 bytes read, 64 written; backward casts back
        z = y.float().double()  # 64 and 128; to FP64 is none, in both directions
        z.sum().backward()
        return z

    found = counts.eager_casts(step)
    assert found.document() == {
        "casts": 4, "bytes": 4 * 192, "of_inputs": None, "bytes_of_inputs": None,
    }  # fmt: skip


def test_a_compiled_graph_counts_results_and_inputs_apart() -> None:
    graph = torch.fx.Graph()
    cast = torch.ops.prims.convert_element_type.default
    with fake_mode():
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(10)
        value = x
        for dtype in (torch.float16, torch.float32, torch.float64, torch.float16):
            last, value = value, graph.call_function(cast, (value, dtype))
            value.meta["val"] = last.meta["val"].to(dtype)
    graph.output(value)
    found = counts.Casts(0, 0, 0, 0)
    counts.add_casts(graph, found)
    assert found == counts.Casts(2, 20 + 40, 1, 20)


def test_flops_are_those_of_the_matmuls_and_the_model_stays_as_it_is() -> None:
    model = nn.Linear(8, 16, bias=False)
    batch = (torch.randn(4, 8),)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x).sum()
        return value

    workload = Workload(model, batch, loss, torch.optim.SGD(model.parameters()))
    # Forward and the gradient of the weight; nobody asks for that of the batch.
    assert counts.model_flops(workload) == 2 * (2 * 4 * 8 * 16)
    assert model.weight.grad is None
    assert model.weight.device.type == "cpu"


@pytest.mark.parametrize("name", TINY)
def test_flops_of_every_tiny_model_can_be_counted(name: str) -> None:
    assert counts.model_flops(load(name, "tiny", "cpu")) > 0


def test_a_size_that_a_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"resnet\.py has no size billion"):
        load("resnet", "billion", "cpu")


def test_the_table_says_what_failed_and_what_is_not_known() -> None:
    good: dict[str, Any] = {
        "median_ms": 2.0, "p10_ms": 1.5, "p90_ms": 2.5, "samples_per_s": 50.0, "memory": 2**21,
        "setup_s": 3.0, "syncs": 0, "loss": 1.0, "note": "fine", "runs": [], "flops": 989e9,
        "casts": {"casts": 7, "bytes": 1_500_000, "of_inputs": None},
    }  # fmt: skip
    document = {
        "model": "gpt",
        "size": "tiny",
        "machine": {"device": "x", "torch": "2", "python": "3"},
        "variants": {"good": good, "bad": {"runs": [{"error": "Traceback\nValueError: no"}]}},
    }
    _, heads, first, second = step_table.table(document).splitlines()
    assert len(heads.removesuffix("note").rstrip()) <= len(first)
    assert "50.0" in first  # per cent: 989 GFLOP in 2 ms of a device that does 989 in 1 ms
    assert " 7 " in first
    assert "1.50" in first
    assert "-" in first
    assert second == f"{'bad':<20}failed: ValueError: no"
    assert step_table.utilisation({**good, "syncs": None}) is None


def test_the_update_bench_runs_the_update_and_reckons_by_its_byte_model() -> None:
    model = update.layers(65_536, "cpu")
    run = update.our_update(model, "cpu", "interpreter")
    before = [p.detach().clone() for p in model.parameters()]
    run()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert update.OURS == 28 + 2
    rows = update.measure(1, "cpu", 2, "interpreter")
    assert [row.way for row in rows] == ["copy", "ours", "fused"]
    assert rows[1].parameters == pytest.approx(1_000_000, rel=0.02)
    assert rows[0].bytes == rows[1].bytes == 30 * rows[1].parameters
    for row in rows:
        assert row.of_copy == pytest.approx(row.bandwidth / rows[0].bandwidth)


def test_the_stages_of_transform_that_are_timed_are_those_that_run() -> None:
    seconds = time_transform(linear())
    assert {name for names in growth.STAGES.values() for name in names} <= set(seconds)
    whole = seconds.pop("transform")
    assert sum(seconds.values()) == pytest.approx(whole)
