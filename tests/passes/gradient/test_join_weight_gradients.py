"""The gradient of a weight with many readers is one matmul."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from programs.graphs import graph_of, run
from torch import Tensor, fx, nn

import mpcompile
from bench.numerics.sums import LIMIT, error, exact_gradients, our_gradients
from mpcompile import FULL_PRECISION, LossScale, Policy, Precision
from mpcompile.passes.gradient.join_weight_gradients import join_weight_gradients
from mpcompile.passes.gradient.sum_in_full import sum_in_full
from mpcompile.pipeline import transform
from mpcompile.program.marks import BACKWARD
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices
from mpcompile.torch_private.ops import op_name


def recorded(program: Callable[..., Tensor], **inputs: Tensor) -> fx.GraphModule:
    """Record a program, all of it as backward."""
    module = graph_of(program, **inputs)
    for node in module.graph.nodes:
        if node.op == "call_function":
            BACKWARD[node] = True
    return module


def ops_of(module: fx.GraphModule) -> Counter[str]:
    return Counter(op_name(node) for node in module.graph.nodes if node.op == "call_function")


def matrices(count: int, rows: int = 3) -> dict[str, Tensor]:
    """Return gradients ``g0 ...`` of 16 columns and values ``x0 ...`` of 8."""
    torch.manual_seed(0)
    found = {f"g{k}": torch.randn(rows, 16).half() for k in range(count)}
    return found | {f"x{k}": torch.randn(rows, 8).half() for k in range(count)}


def products(*given: Tensor) -> Tensor:
    half = len(given) // 2
    first, *rest = [g.t() @ x for g, x in zip(given[:half], given[half:], strict=True)]
    for product in rest:
        first = first + product
    return first


def flipped(*given: Tensor) -> Tensor:
    """The same with each second product made as its transpose."""
    half = len(given) // 2
    total = None
    for index, (g, x) in enumerate(zip(given[:half], given[half:], strict=True)):
        product = (x.t() @ g).t() if index % 2 else g.t() @ x
        total = product if total is None else total + product
    assert total is not None
    return total


@pytest.mark.parametrize("program", [products, flipped])
def test_one_matmul_is_nearer_to_fp64_than_the_sum(program: Callable[..., Tensor]) -> None:
    inputs = matrices(50)
    module, summed = recorded(program, **inputs), recorded(program, **inputs)
    assert join_weight_gradients(module) == 1
    module.graph.lint()
    assert ops_of(module)["mm"] == 1
    assert not {"add"} & {*ops_of(module)}
    sum_in_full(summed)
    exact = program(*(value.double() for value in inputs.values()))
    errors = [
        float((run(each, *inputs.values())[0].double() - exact).norm()) for each in (module, summed)
    ]
    assert errors[0] < errors[1]
    assert join_weight_gradients(module) == 0


def test_other_terms_are_added() -> None:
    inputs = matrices(5) | {"other": torch.randn(16, 8).half()}

    def program(*given: Tensor) -> Tensor:
        half = len(given) // 2
        first, second, *rest = [
            g.t() @ x for g, x in zip(given[:half], given[half:-1], strict=True)
        ]
        total = first + given[-1]
        for product in (second, *rest):
            total = total + product
        return total

    module = recorded(program, **inputs)
    (before,) = run(module, *inputs.values())
    assert join_weight_gradients(module) == 1
    assert ops_of(module)["mm"] == ops_of(module)["add"] == 1
    (after,) = run(module, *inputs.values())
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.03)


def test_a_product_that_is_read_elsewhere_stays_a_term() -> None:
    inputs = matrices(5)

    def program(*given: Tensor) -> tuple[Tensor, Tensor]:
        first = given[0].t() @ given[5]
        total = first
        for k in range(1, 5):
            total = total + given[k].t() @ given[5 + k]
        return total, first.relu()

    module = recorded(program, **inputs)  # type: ignore[arg-type]
    before = run(module, *inputs.values())
    assert join_weight_gradients(module) == 1
    assert ops_of(module)["mm"] == 2
    torch.testing.assert_close(run(module, *inputs.values()), before, rtol=0.0, atol=0.03)


@pytest.mark.parametrize(
    ("program", "inputs"),
    [
        (products, matrices(3)),  # two roundings are the error of one op
        (products, matrices(8, rows=6)),  # 6 * 24 numbers make 16 * 8
        (products, {k: v.float() for k, v in matrices(8).items()}),
        (
            lambda g, x: (p := g.t() @ x) + p + p + p + p,
            {"g": torch.ones(1, 8).half()} | {"x": torch.ones(1, 8).half()},
        ),
    ],
    ids=["short", "many rows", "FP32", "one product"],
)
def test_what_stays(program: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
    module = recorded(program, **inputs)
    text = str(module.graph)
    assert join_weight_gradients(module) == 0
    assert str(module.graph) == text


def test_sums_of_forward_stay() -> None:
    module = graph_of(products, **matrices(8))
    assert join_weight_gradients(module) == 0


def test_sums_of_rows_are_joined_where_a_weight_has_joined_the_rows() -> None:
    inputs = matrices(6)

    def program(*given: Tensor) -> tuple[Tensor, Tensor]:
        bias = given[0].sum(0, keepdim=True).view(16)
        for gradient in given[1:6]:
            bias = bias + gradient.sum(0, keepdim=True).view(16)
        return products(*given), bias

    module = recorded(program, **inputs)  # type: ignore[arg-type]
    assert join_weight_gradients(module) == 2
    assert ops_of(module) == {"cat": 2, "t": 1, "mm": 1, "sum": 1}
    weight, bias = run(module, *inputs.values())
    exact = sum(inputs[f"g{k}"].double().sum(0) for k in range(6))
    torch.testing.assert_close(bias.double(), exact, rtol=2**-11, atol=1e-3)
    assert bias.dtype is weight.dtype is torch.float16


def test_parts_of_sums_of_rows_stay() -> None:
    inputs = matrices(6)

    def program(*given: Tensor) -> tuple[Tensor, ...]:
        weight, part = products(*given), given[0].sum(0)[:4]
        for gradient in given[1:6]:
            part = part + gradient.sum(0)[:4]
        return weight, part

    module = recorded(program, **inputs)  # type: ignore[arg-type]
    before = run(module, *inputs.values())[1]
    assert join_weight_gradients(module) == 1
    assert torch.equal(run(module, *inputs.values())[1], before)


@pytest.mark.parametrize("early", [True, False])
def test_two_biases_with_other_terms_share_the_sum_of_the_rows(early: bool) -> None:
    inputs = matrices(6) | {"other": torch.randn(16).half()}

    def program(*given: Tensor) -> tuple[Tensor, ...]:
        weight = products(*given[:-1]) if early else None
        other = given[-1].tanh()
        first, second = (gradient.sum(0) for gradient in given[:2])
        bias = first + second
        also = given[0].sum(0) + other.exp()
        for gradient in given[1:6]:
            also = also + gradient.sum(0)
        for gradient in given[2:6]:
            bias = bias + gradient.sum(0)
        bias = bias + other.sin()
        return (products(*given[:-1]) if weight is None else weight), bias, also

    module = recorded(program, **inputs)  # type: ignore[arg-type]
    before = run(module, *inputs.values())
    assert join_weight_gradients(module) == 3
    module.graph.lint()
    assert ops_of(module)["sum"] == 1
    after = run(module, *inputs.values())
    torch.testing.assert_close(after, before, rtol=4e-3, atol=0.03)


class Cell(nn.Module):
    """A recurrent cell over the second axis of its input."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 16), nn.Linear(16, 3)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        cell = state
        for item in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, cell = self.cell(item, (state, cell))
            else:
                state = self.cell(item, state)
        result: Tensor = self.head(state)
        return result


def loss(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = model(x).square().mean()
    return result


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_weights_of_a_cell_have_one_matmul_each(
    kind: type[nn.RNNCellBase], precision: Precision
) -> None:
    torch.manual_seed(0)
    model, x = Cell(kind), torch.randn(2, 12, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Workload(model=model, loss=loss, optimizer=optimizer, batch=(x,))
    made = transform(work, Choices(policy=Policy(precision=precision)))
    assert made.step is not None
    counts = ops_of(made.step.gradient)
    # A matmul a step for the state's gradient, but for the first state; two for the head; two here.
    assert counts["mm"] == 11 + 2 + 2
    found = our_gradients(model, x, precision, 64.0)
    assert error(found, exact_gradients(model, x)) < LIMIT[precision]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_inductor_computes_the_same(precision: Precision) -> None:
    """The gradients of an LSTM cell's two biases are one sum."""
    torch.manual_seed(0)
    model, x = Cell(nn.LSTMCell), torch.randn(2, 8, 8)
    found = our_gradients(model, x, precision, 64.0, "inductor")
    assert error(found, exact_gradients(model, x)) < LIMIT[precision]
    assert torch.equal(found["cell.bias_ih"], found["cell.bias_hh"])


def test_two_biases_with_one_gradient_train_apart() -> None:
    """Their gradients are one tensor, their momenta and decays are not."""
    torch.manual_seed(0)
    model, x = Cell(nn.LSTMCell), torch.randn(2, 8, 8)
    cell = model.cell
    groups: list[dict[str, Any]] = [
        {"params": [cell.bias_ih], "weight_decay": 0.5},
        {"params": [p for p in model.parameters() if p is not cell.bias_ih]},
    ]
    first = [cell.bias_ih.detach().clone(), cell.bias_hh.detach().clone()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    step = mpcompile.compile(model, loss, optimizer, (x,), max_grad_norm=1.0)
    gradients = step.gradients(x)
    step(x)
    norm = sum(float(value.double().square().sum()) for value in gradients.values()) ** 0.5
    gradient = gradients["cell.bias_hh"] / max(1.0, norm)
    torch.testing.assert_close(
        cell.bias_hh.detach(), first[1] - 0.1 * gradient, rtol=1e-4, atol=1e-6
    )
    decayed = first[0] - 0.1 * (gradient + 0.5 * first[0])
    torch.testing.assert_close(cell.bias_ih.detach(), decayed, rtol=1e-4, atol=1e-6)


class Tanh(nn.Module):
    """A recurrent cell of linears, over the second axis of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        for item in x.unbind(1):
            state = torch.tanh(self.enter(item) + self.again(state))
        return state


def test_an_open_batch_size_trains_like_a_fixed_one() -> None:
    losses = []
    for dynamic in (False, True):
        torch.manual_seed(0)
        model = Tanh()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = [(torch.randn(size, 6, 8),) for size in (4, 2, 5)]
        step = mpcompile.compile(
            model, loss, optimizer, batches[0], dynamic=dynamic, loss_scale=LossScale.static(64.0)
        )
        losses.append([float(step(*batch)) for batch in batches])
    assert losses[0] == losses[1]


def test_fp32_is_eager_to_the_last_bit() -> None:
    results = []
    for eager in (True, False):
        torch.manual_seed(0)
        model, x = Cell(nn.LSTMCell), torch.randn(2, 12, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if eager:
            loss(model, x).backward()
            optimizer.step()
        else:
            mpcompile.compile(model, loss, optimizer, (x,), policy=FULL_PRECISION)(x)
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *results))
