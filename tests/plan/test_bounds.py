"""Bounds without data: random programs stay inside them, and what they allow in a plan."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mpcompile.onnx.rewrite import given_model, prepare
from mpcompile.onnx_graph.kernels import Target
from mpcompile.onnx_graph.value_rows import value_bounds
from mpcompile.plan.bounds.bound import Bound, Step, point
from mpcompile.plan.bounds.choices import is_small_angle
from mpcompile.plan.bounds.table import MOVES, TABLE
from mpcompile.plan.bounds.walk import bounds_of
from mpcompile.plan.dataflow import Dataflow, Fixed
from mpcompile.plan.given import decide, for_other_shapes
from mpcompile.plan.op_table import ONNX_RULES, TORCH_RULES
from mpcompile.plan.policy import Policy
from mpcompile.plan.rule import Sensitivity, Wish
from mpcompile.precision import Precision
from mpcompile.program.control_flow import nest_of
from mpcompile.program.describe import dataflow
from mpcompile.program.value_rows.steps import tensor_bounds
from mpcompile.torch_private.ops import op_name

ROWS, COLUMNS = 4, 8
DEMANDS = (Sensitivity.DISCONTINUOUS, Sensitivity.COMPARISON)

ONE: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin,
    torch.cos,
    torch.tanh,
    torch.sigmoid,
    torch.erf,
    torch.atan,
    torch.relu,
    torch.nn.functional.relu6,
    torch.nn.functional.gelu,
    torch.nn.functional.silu,
    torch.nn.functional.hardtanh,
    torch.nn.functional.hardsigmoid,
    torch.abs,
    torch.neg,
    torch.square,
    torch.floor,
    torch.ceil,
    torch.round,
    torch.trunc,
    torch.frac,
    torch.sign,
    lambda x: x.clamp(-1, 1),
    lambda x: x.clamp(-2.5, 0.3),
    lambda x: x.clamp_min(-0.7),
    lambda x: x.clamp_max(0.6),
    lambda x: x.abs().sqrt(),
    lambda x: x.clamp(-5, 5).exp(),
    lambda x: x.clamp(-5, 5).expm1(),
    lambda x: x.remainder(7.0),
    lambda x: x.fmod(-3.0),
    lambda x: (x > 0.5).to(torch.float32),
    lambda x: x.clamp(-900, 900).to(torch.int64).to(torch.float32),
    lambda x: x.argmax(-1, keepdim=True).to(torch.float32).expand(ROWS, COLUMNS),
    lambda x: x.softmax(-1),
    lambda x: x.mean(-1, keepdim=True).expand(ROWS, COLUMNS),
    lambda x: x.sum(-1, keepdim=True).expand(ROWS, COLUMNS),
    lambda x: x.cumsum(-1),
    lambda x: x.amax(-1, keepdim=True).expand(ROWS, COLUMNS),
    lambda x: x.sort(-1).values,
    lambda x: torch.nn.functional.layer_norm(x, (COLUMNS,)),
    lambda x: x.tril(),
    lambda x: x.roll(1, -1),
    lambda x: torch.nn.functional.pad(x[:, 1:], (1, 0), value=3.0),
    lambda x: x.masked_fill(x > 0, -2.0),
    lambda x: 1.0 - x,
    lambda x: x * 0.37,
    lambda x: x / 3.0,
    lambda x: x + 2.0,
)
TWO: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.sub,
    torch.mul,
    torch.maximum,
    torch.minimum,
    lambda a, b: torch.add(a, b, alpha=-0.5),
    lambda a, b: a / (b.abs() + 0.25),
    lambda a, b: torch.where(a > b, a, b * 0.5),
    lambda a, b: torch.cat([a, b])[::2],
    lambda a, b: torch.stack([a, b]).amax(0),
)


def program(seed: int) -> Callable[..., Tensor]:
    """Return a random function of a batch, small integers and a buffer."""
    draw = random.Random(seed)
    steps = [
        (draw.randrange(len(ONE) + len(TWO)), draw.random(), draw.random())
        for _ in range(draw.randint(2, 9))
    ]
    end, scale = draw.choice((8, 300, 3000)), draw.choice((1.0, 0.01))

    def run(data: Tensor, integers: Tensor, buffer: Tensor) -> Tensor:
        positions = torch.arange(end - COLUMNS, end).to(torch.float32) * scale
        made = [data, integers.to(torch.float32), buffer, positions.expand(ROWS, COLUMNS)]
        for which, first, second in steps:
            a, b = (made[int(share * len(made))] for share in (first, second))
            index = which - len(ONE)
            made.append(ONE[which](a) if index < 0 else TWO[index](a, b))
        return made[-1]

    return run


def captured(seed: int) -> tuple[fx.GraphModule, tuple[Tensor, ...], dict[str, Bound]]:
    numbers = torch.Generator().manual_seed(seed)
    data = torch.randn(ROWS, COLUMNS, generator=numbers) * 10.0 ** random.Random(seed).uniform(
        -3, 3
    )
    integers = torch.randint(0, 255, (ROWS, COLUMNS), generator=numbers).to(torch.uint8)
    buffer = torch.rand(ROWS, COLUMNS, generator=numbers)
    inputs = data, integers, buffer
    module = make_fx(program(seed), pre_dispatch=True)(*inputs)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    fixed = dict(zip(names, (Fixed.BATCH, Fixed.BATCH, Fixed.BUFFER), strict=True))
    bounds = tensor_bounds(nest_of(module), fixed, {names[2]: buffer}, Precision.FP16)
    return module, inputs, bounds


class Exact(fx.Interpreter):
    """Runs a graph and keeps the tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.found[n.name] = result
        return result


class Narrow(Exact):
    """Rounds each FP32 tensor to FP16; ops that demand exact arguments get them."""

    def __init__(self, module: fx.GraphModule, exact: dict[str, Tensor], bounds: Any) -> None:
        super().__init__(module)
        self.exact, self.bounds = exact, bounds

    def run_node(self, n: fx.Node) -> Any:
        rule = TORCH_RULES.get(op_name(n)) if n.op == "call_function" else None
        if rule is not None and self._demands(n, rule.sensitivity):
            values = fx.map_arg(n.args, lambda item: self.exact.get(item.name, self.env[item]))
            result = n.target(*values, **n.kwargs)  # type: ignore[operator]
        else:
            result = super(Exact, self).run_node(n)
        if isinstance(result, Tensor) and result.dtype is torch.float32:
            result = result.half().float()
        if isinstance(result, Tensor) and n.op != "output":
            self.found[n.name] = result
        return result

    def _demands(self, n: fx.Node, sensitivity: Sensitivity) -> bool:
        if sensitivity is Sensitivity.PERIODIC:
            return not is_small_angle(self.bounds[n.all_input_nodes[0].name])
        return sensitivity in DEMANDS


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_random_programs_stay_inside_their_bounds_and_errors(first: int) -> None:
    finite = bounded = 0
    for seed in range(first, first + 50):
        module, inputs, bounds = captured(seed)
        exact = Exact(module)
        exact.run(*inputs)
        narrow = Narrow(module, exact.found, bounds)
        narrow.run(*inputs)
        for name, value in exact.found.items():
            bound, numbers = bounds[name], value[~value.isnan()].double()
            assert bool((numbers >= bound.low).all()), (seed, name, bound)
            assert bool((numbers <= bound.high).all()), (seed, name, bound)
            if bound.integer:
                assert bool((numbers == numbers.round()).all()), (seed, name, bound)
            finite += bound.size < math.inf
            if bound.error == math.inf or not value.numel():
                continue
            bounded += 1
            error = float((narrow.found[name].double() - value.double()).abs().nan_to_num().max())
            allowed = bound.error * 2.0**-11 * 1.02 + bound.size * 2.0**-20
            assert error <= (allowed if bound.error else 0.0), (seed, name, bound, error)
    assert finite > 300
    assert bounded > 200


def test_a_row_is_an_op_of_the_op_table_or_a_name_of_a_describer() -> None:
    own = "given held cast cast_exactly layer getitem own_backward"
    known = {*TORCH_RULES, *ONNX_RULES, *own.split()}
    assert {*MOVES, *TABLE} - known == set()


@pytest.mark.parametrize(
    ("value", "precision", "exact"),
    [
        (2048.0, Precision.FP16, True),
        (2049.0, Precision.FP16, False),
        (4096.0, Precision.FP16, True),
        (0.125, Precision.FP16, True),
        (0.1, Precision.FP16, False),
        (70000.0, Precision.FP16, False),
        (math.inf, Precision.FP16, True),
        (256.0, Precision.BF16, True),
        (257.0, Precision.BF16, False),
    ],
)
def test_a_number_is_exact_if_the_format_has_it(
    value: float, precision: Precision, exact: bool
) -> None:
    assert point(value, precision).exact is exact


def test_integers_are_exact_up_to_the_digits_of_the_format() -> None:
    steps = [
        Step("arange", (300.0,), "i", limits=(-(2.0**63), 2.0**63)),
        Step("cast", ("i",), "x"),
        Step("arange", (3000.0,), "j", limits=(-(2.0**63), 2.0**63)),
        Step("cast", ("j",), "y"),
    ]
    fp16, bf16 = bounds_of(steps, Precision.FP16), bounds_of(steps, Precision.BF16)
    assert (fp16["x"].low, fp16["x"].high, fp16["x"].integer) == (0, 299, True)
    assert [fp16["x"].exact, fp16["y"].exact, bf16["x"].exact] == [True, False, False]


def test_a_choice_by_a_layers_result_is_never_exact() -> None:
    steps = [
        Step("unknown", (), "x"),
        Step("weight", (), "w"),
        Step("linear", ("x", "w"), "h"),
        Step("gt", ("h", 0.0), "m", limits=(0.0, 1.0), full=False),
        Step("cast", ("m",), "float mask"),
        Step("gt", ("x", 0.0), "n", limits=(0.0, 1.0), full=False),
        Step("cast", ("n",), "mask of the batch"),
        Step("gather", ("table", 0.0, "m"), "chosen"),
    ]
    found = bounds_of(steps, Precision.FP16)
    assert not found["float mask"].exact
    assert found["mask of the batch"].exact
    assert not found["chosen"].exact


def test_an_integer_that_leaves_its_dtype_has_only_the_limits_of_it() -> None:
    byte = (0.0, 255.0)
    steps = [
        Step("batch", (), "x", limits=byte, full=False),
        Step("add", ("x", "x"), "y", limits=byte, full=False),
    ]
    assert bounds_of(steps, Precision.FP16)["y"].high == 255


def test_an_index_of_a_table_is_bounded_by_its_rows() -> None:
    step = Step("batch", (), "ids", limits=(-(2.0**63), 2.0**63), full=False)
    found = bounds_of([step], Precision.FP16, {"ids": (0.0, 99.0)})
    assert (found["ids"].low, found["ids"].high) == (0, 99)


def planned(run: Callable[..., Tensor], *inputs: Tensor) -> Dataflow:
    """Return the graph of a function of a batch and of weights, which begin with the second."""
    module = make_fx(run, pre_dispatch=True)(*inputs)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    fixed = {name: Fixed.PARAMETER if k else Fixed.BATCH for k, name in enumerate(names)}
    return dataflow(module, fixed, Policy())


def wishes(flow: Dataflow) -> dict[str, Wish]:
    return {op.id: op.wish for op in flow.ops if op.writes}


DATA, WEIGHT = torch.rand(4, 16), torch.rand(16, 16)


def test_a_small_angle_of_a_layer_leaves_the_layer_in_16_bits() -> None:
    bounded = planned(lambda x, w: torch.sin(torch.tanh(x @ w)), DATA, WEIGHT)
    assert wishes(bounded) == {"matmul": Wish.HALF, "tanh": Wish.FREE, "sin": Wish.FREE}
    reason = {op.id: op.reason for op in bounded.ops}["tanh"]
    assert reason.endswith("sin reads it, but it is between -1 and 1")
    large = planned(lambda x, w: torch.sin(torch.tanh(x @ w) * 50.0), DATA, WEIGHT)
    assert set(wishes(large).values()) == {Wish.FULL}


@pytest.mark.parametrize(
    ("run", "wish"),
    [
        (lambda x: torch.sin(x.clamp(-1, 1)), Wish.FREE),
        (lambda x: torch.cos(x.sigmoid()), Wish.FREE),
        (lambda x: torch.sin(x.clamp(-3, 3)), Wish.FULL),
        (lambda x: torch.sin(x.clamp_max(1)), Wish.FULL),
        (lambda x: torch.sin((x > 0).to(x) * 2000.0), Wish.FREE),
        (lambda x: torch.sin((x > 0).to(x) * 2049.0), Wish.FULL),
        (lambda x: 1.0 - (x > 0).to(x), Wish.FREE),
        (lambda x: 1.0 - x, Wish.FULL),
        (lambda x: 5.0 - x.sigmoid(), Wish.FREE),
        (lambda x: 1.0 - x.sigmoid(), Wish.FULL),
        (lambda x: x.clamp(0, 9).floor() - 3.0, Wish.FREE),
    ],
)
def test_what_a_bound_lets_go(run: Callable[..., Tensor], wish: Wish) -> None:
    flow = planned(run, DATA)
    assert flow.ops[-1].wish is wish, flow.ops[-1].reason


def test_an_exact_mask_beside_a_layers_result_is_not_compared() -> None:
    def masked(x: Tensor, w: Tensor) -> Tensor:
        return x @ w + (x > 0).to(x)

    assert wishes(planned(masked, DATA, WEIGHT))["add"] is Wish.FREE
    assert wishes(planned(lambda x, w: x @ w + x, DATA, WEIGHT))["add"] is Wish.FULL


def test_a_plan_for_few_positions_is_not_taken_over_for_many() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        positions = torch.arange(500 * x.shape[0]).to(x)
        turned = torch.stack([positions, positions]).sin()
        return x @ w + turned.sum()

    few, many = planned(run, torch.rand(4, 16), WEIGHT), planned(run, torch.rand(8, 16), WEIGHT)
    assert (wishes(few)["stack"], wishes(many)["stack"]) == (Wish.FREE, Wish.FULL)
    plan = decide(few, Precision.FP16)
    narrow = tuple(replace(item, stores=Precision.FP16) for item in plan.decisions)
    taken = for_other_shapes(replace(plan, decisions=narrow), many)
    assert {"stack", "sin"}.isdisjoint(decision.op for decision in taken.decisions)
    assert "matmul" in {decision.op for decision in taken.decisions}


def test_what_becomes_a_complex_tensor_is_kept_exact() -> None:
    def run(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft(x * 3.0)) - 1.0

    assert wishes(planned(run, DATA))["mul"] is Wish.FULL


def test_an_onnx_graph_has_the_same_bounds() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor, ids: Tensor, table: Tensor) -> Tensor:
            positions = torch.cumsum(mask, -1) * mask
            turned = torch.sin(positions.to(x.dtype) * 0.001)
            kept = 1.0 - mask.to(x.dtype)
            return (
                (x.clamp(-1, 1) * 0.5).cos()
                + turned
                + kept
                + torch.nn.functional.embedding(ids, table).sum(-1)
            )

    shape = (4, 16)
    mask = torch.ones(shape, dtype=torch.int32)
    ids = torch.zeros(shape, dtype=torch.int64)
    given = torch.rand(shape), mask > 0, ids, torch.rand(50, 3)
    exported = torch.onnx.export(Net(), given, dynamo=True, verbose=False)
    assert exported is not None
    prepared = prepare(given_model(exported.model_proto), Policy(), Precision.FP16, Target.ANY)
    bounds = {tensor.id: tensor.bound for tensor in prepared.flow.tensors}
    made = {op.kind: bounds[op.writes[0]] for op in prepared.flow.ops if op.writes}
    assert (made["Clip"].low, made["Clip"].high) == (-1, 1)
    assert (made["Sub"].low, made["Sub"].high, made["Sub"].exact) == (0, 1, True)
    assert made["Sin"].low == made["Cos"].low == -1
    indices = value_bounds(prepared.nest, Precision.FP16)
    assert (-50, 49) in {(bound.low, bound.high) for bound in indices.values()}
    wish = {op.kind: op.wish for op in prepared.flow.ops if op.kind in ("Sub", "Cos")}
    assert set(wish.values()) == {Wish.FREE}
