"""What reaches memory, on graphs small enough to count by hand."""

from __future__ import annotations

from typing import Any

from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.footprint import Cost, Footprint, cost, footprints
from mpcompile.plan.rule import Wish

KINDS: dict[str, dict[str, Any]] = {
    "matmul": {"wish": Wish.HALF, "streams": False},
    "gelu": {"wish": Wish.FREE},
    "add": {"wish": Wish.FREE},
    "norm": {"wish": Wish.FREE, "inside": True},
    "exp": {"wish": Wish.FULL, "inside": True},
    "sort": {"wish": Wish.FULL, "streams": False},
    "view": {"wish": Wish.FREE, "view": True},
}


def flow_of(text: str, outputs: str = "", sizes: dict[str, int] | None = None) -> Dataflow:
    """Read lines like ``b = norm a g keeps a full g``; what nothing writes is a parameter."""
    ops: list[Op] = []
    names: list[str] = []
    for number, line in enumerate(text.strip().splitlines()):
        result, _, rest = line.strip().partition(" = ")
        rest, _, full = rest.partition(" full ")
        rest, _, keeps = rest.partition(" keeps ")
        kind, *reads = rest.split()
        row = {"inside": False, "streams": True, **KINDS[kind]}
        ops.append(
            Op(
                id=f"{kind}{number}",
                kind=kind,
                rule=kind,
                reason="",
                reads=tuple(reads),
                writes=(result,),
                keeps=tuple(keeps.split()),
                full_reads=tuple(full.split()),
                **row,
            )
        )
        names += [name for name in (*reads, result) if name not in names]
    written = {name for op in ops for name in op.writes}
    return Dataflow(
        tuple(ops),
        tuple(
            Tensor(
                name,
                (sizes or {}).get(name, 1),
                None if name in written else Fixed.PARAMETER,
                name in outputs.split(),
            )
            for name in names
        ),
    )


def row(flow: Dataflow, tensor: str) -> Footprint:
    return next(found for found in footprints(flow) if found.tensor.id == tensor)


def price(flow: Dataflow, *half: str) -> Cost:
    kinds = {op.id for op in flow.ops if op.kind in half}
    return cost(footprints(flow), frozenset(kinds))


def test_what_one_kernel_makes_and_reads_costs_nothing() -> None:
    flow = flow_of("a = gelu x\nb = add a a\nc = norm b\nd = sort c")
    assert not row(flow, "a").written
    assert not row(flow, "b").written
    # c is loaded by a library call: once, in FP32. x is there anyway, d is the call's result.
    assert price(flow) == Cost(4 + 4, 0)


def test_a_second_reader_brings_it_to_memory() -> None:
    flow = flow_of("a = gelu x\nb = add a a\nc = exp a")
    assert row(flow, "a").written


def test_a_view_between_does_not_matter_and_costs_nothing() -> None:
    flow = flow_of("a = gelu x\nb = view a\nc = norm b\nd = sort c")
    assert not row(flow, "a").written
    assert price(flow) == Cost(4 + 4, 0)


def test_what_backward_keeps_is_in_memory_and_counts_twice() -> None:
    flow = flow_of("a = gelu x\nb = exp a keeps a\nc = sort b")
    assert row(flow, "a").written
    assert price(flow) == Cost(4 + 4 + 4 + 4, 0)
    assert price(flow, "gelu") == Cost(2 + 2 + 4 + 4, 1)


def test_a_loop_writes_just_the_copy_that_a_library_call_loads() -> None:
    flow = flow_of("a = exp x\nb = matmul a w\nc = sort b")
    # a in 16 bits only, w in 16 bits, b in both: its call writes 16 bits, sort loads FP32.
    assert price(flow, "matmul") == Cost(2 + 2 + 2 + 4 + 4, 3)


def test_arithmetic_inside_a_loop_takes_what_is_stored() -> None:
    flow = flow_of("a = matmul x w\nb = norm a\nc = matmul b v")
    assert row(flow, "a").reads == ()
    assert price(flow, "matmul", "norm") == Cost(2 + 2 + 2 + 2 + 2 + 2, 3)


def test_an_argument_that_stays_fp32_is_loaded_in_fp32() -> None:
    flow = flow_of("g = gelu x\na = norm y g full g\nb = sort a\nc = sort g")
    assert row(flow, "g").wide
    assert price(flow, "gelu") == Cost((2 + 4) + 4 + 4 + 4, 2)
    assert price(flow) == Cost(4 + 4 + 4 + 4, 0)


def test_one_memory_kept_under_two_names_counts_once() -> None:
    flow = flow_of("a = gelu x keeps a\nb = view a\nc = matmul b w keeps b")
    assert row(flow, "a").kept
    assert not row(flow, "b").kept
    # a, w and c in 16 bits, and a once more for backward.
    assert price(flow, "gelu", "view", "matmul") == Cost(2 + 2 + 2 + 2, 2)


def test_a_result_leaves_in_fp32() -> None:
    flow = flow_of("a = matmul x w", outputs="a")
    # x, w, a in 16 bits and a in FP32.
    assert price(flow, "matmul") == Cost(2 + 2 + 2 + 4, 3)
