"""Steps with an open batch size: one graph gives for every size what a graph of that size gives."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture, Precision
from mpcompile.lower import recompute
from mpcompile.passes.forward.chunk_head import ChunkHead
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.speed.least_time import kernels
from mpcompile.step.transformed import Choices
from mpcompile.torch_private import inductor


class Words(nn.Module):
    """Tokens: an embedding, attention, an MLP, tied to the head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.enter = nn.Linear(16, 48)
        self.leave = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, 2, width // 2).transpose(1, 2)
            for part in self.enter(self.norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.leave(mixed.transpose(1, 2).reshape(batch, time, width)))
        return F.linear(x, self.words.weight)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


def dropping() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
    )


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def classes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def words(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(tokens[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def squares(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss that reckons with the batch size itself, and never says that both have the same."""
    penalty: torch.Tensor = y.float().square().sum() / (2 * y.shape[0])
    first: torch.Tensor = model(x).square().sum() / x.shape[0]
    return first + penalty * next(model.parameters()).mean()


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def tokens(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 11, (count, 7), generator=torch.Generator().manual_seed(seed)),)


class Masked(nn.Module):
    """Attention written out, and a mask that has no batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", torch.randn(5, 5))

    def forward(self, x: torch.Tensor) -> Any:
        return self.attention(x, x, x, attn_mask=self.mask)[0].mean(1)


def series(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    x, y = rows(5 * count, seed)
    return x.view(count, 5, 8), y[:count]


NETS: dict[str, tuple[Any, ...]] = {
    "perceptron": (perceptron, squares, rows),
    "convolution": (convolution, classes, pictures),
    "words": (Words, words, tokens),
    "masked": (Masked, classes, series),
}


def compiled(loss: Any, batch: Any, make: Any = perceptron, **options: Any) -> mpcompile.TrainStep:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return mpcompile.compile(model, loss, optimizer, batch, **{"dynamic": True, **options})


@pytest.mark.parametrize("name", NETS)
def test_in_fp32_each_size_trains_as_eager_pytorch_does(name: str) -> None:
    make, loss, batch = NETS[name]
    step = compiled(loss, batch(6), make, policy=FULL_PRECISION)
    torch.manual_seed(0)
    peer = make()
    optimizer = torch.optim.SGD(peer.parameters(), lr=1e-2)
    for seed, size in enumerate((6, 2, 9)):
        torch.manual_seed(seed)
        expected = loss(peer, *batch(size, seed))
        optimizer.zero_grad()
        torch.autograd.backward(expected)
        optimizer.step()
        torch.manual_seed(seed)
        assert torch.equal(step(*batch(size, seed)), expected.detach())
        held = step._model.state_dict()
        for key, value in peer.state_dict().items():
            assert torch.equal(held[key], value), key
    assert len(step._graphs) == 1


MIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (dropping, classes, rows, {"max_grad_norm": 0.1, "accumulate": 2}),
    "words": (lambda: Words(0.2), words, tokens, {"max_grad_value": 0.1}),
}


@pytest.mark.parametrize("name", MIXED)
def test_each_size_gives_what_a_graph_of_that_size_gives(name: str) -> None:
    make, loss, batch, options = MIXED[name]
    mine, theirs = (compiled(loss, batch(6), make, dynamic=d, **options) for d in (True, False))
    assert mine.plan.to_json() == theirs.plan.to_json()
    cost = [
        [(k.kind, k.flops, k.reads, k.writes) for k in kernels(step.step)]
        for step in (mine, theirs)
    ]
    assert cost[0] == cost[1]
    for size in (6, 9):
        for seed in range(options.get("accumulate", 1)):
            torch.manual_seed(seed)
            expected = theirs(*batch(size, seed))
            torch.manual_seed(seed)
            assert torch.equal(mine(*batch(size, seed)), expected)
        held = mine._model.state_dict()
        for key, value in theirs._model.state_dict().items():
            assert torch.equal(held[key], value), key
    assert mine.loss_scale == theirs.loss_scale
    assert mine.taken > 0
    assert (len(mine._graphs), len(theirs._graphs)) == (1, 2)


def test_a_head_of_open_rows_is_not_chunked() -> None:
    model = Words()
    work = Workload(model, tokens(60), words, torch.optim.SGD(model.parameters()))
    found = [
        ChunkHead(least=1, chunk=1)(transform(work, Choices(dynamic=dynamic)).forward.module)
        for dynamic in (True, False)
    ]
    assert found == [0, 1]


def test_a_plan_of_the_example_can_be_given() -> None:
    plan = compiled(classes, rows(6), dynamic=False).plan
    wide = [replace(d, computes=Precision.FP32, stores=Precision.FP32) for d in plan.decisions]
    step = compiled(classes, rows(6), plan=replace(plan, decisions=tuple(wide)))
    step(*rows(9))
    assert step.step.working == set()
    assert len(step._graphs) == 1
    shown = str(step.step.slots["batch.0"])
    assert re.search(r"f32\[s\d+,8\]", shown), shown


def branches(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(x)
    if x.shape[0] > 4:
        logits = logits * 2
    return F.cross_entropy(logits, y)


def reshapes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(x)
    return F.cross_entropy(logits.view(6, 4), y)


def counts(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(x)
    return F.cross_entropy(logits / len(x), y)


def adds(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(x)
    return F.cross_entropy(logits + torch.ones(6, 1), y)


@pytest.mark.parametrize(
    ("loss", "line", "condition"),
    [
        (branches, 2, "batch > 4"),
        (reshapes, 2, "4*batch == 24"),
        (counts, 2, "batch == 6"),
        (adds, 2, "batch == 6"),
    ],
)
def test_a_program_of_one_size_is_refused_with_its_line(
    loss: Any, line: int, condition: str
) -> None:
    with pytest.raises(CannotCapture, match="the batch size cannot be left open") as raised:
        compiled(loss, rows(6))
    assert raised.value.where == f"{__file__}:{loss.__code__.co_firstlineno + line}"
    assert f"because the program requires {condition}" in raised.value.what
    assert raised.value.fix is not None
    assert "leave out dynamic=True" in raised.value.fix


def test_what_a_later_stage_fixes_is_refused_with_the_line_of_the_op() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.LSTM(8, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layers(x)[0][:, -1]

    x, y = rows(6)
    with pytest.raises(CannotCapture, match="must know it to differentiate lstm") as raised:
        compiled(classes, (x.unsqueeze(1), y), Recurrent, policy=FULL_PRECISION)
    assert raised.value.where == f"{__file__}:{Recurrent.forward.__code__.co_firstlineno + 1}"


def test_a_number_beside_the_loss_must_not_depend_on_the_size() -> None:
    def pair(count: bool) -> Any:
        def both(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
            logits = model(x)
            return F.cross_entropy(logits, y), (logits, x.shape[0] if count else 3)

        return both

    with pytest.raises(
        CannotCapture, match="returns, beside the loss, a number that depends on it"
    ):
        compiled(pair(True), rows(6))
    _, (logits, three) = compiled(pair(False), rows(6))(*rows(4))
    assert (logits.shape, three) == ((4, 4), 3)


def test_an_example_of_one_row_is_refused() -> None:
    with pytest.raises(
        BadInput, match="no batch size that can stay open; give tensors with 2 rows or more"
    ):
        compiled(classes, rows(1))


def test_other_batches_go_to_other_graphs_or_are_refused() -> None:
    step, peer = (compiled(words, tokens(6), Words, dynamic=d) for d in (True, False))
    lengths = [(6, 7), (1, 7), (3, 5), (4, 5), (1, 7), (5, 7)]
    for shape in lengths:
        given = torch.randint(0, 11, shape)
        assert torch.equal(step(given), peer(given))
    assert len(step._graphs) == 3
    step = compiled(classes, rows(6))
    with pytest.raises(BadInput, match=r"raises ValueError on .* of shapes \[4, 8\], \[5\]"):
        step(rows(4)[0], rows(5)[1])
    with pytest.raises(BadInput, match=r"raises RuntimeError on .* of shapes \[4, 9\], \[4\]"):
        step(torch.randn(4, 9), rows(4)[1])
    assert torch.isfinite(step(*rows(4)))
    assert len(step._graphs) == 1


def test_what_is_as_long_as_the_batch_by_chance_stays_as_it_is() -> None:
    def mixed(model: nn.Module, x: Any, mix: Any, weight: Any, y: Any) -> Any:
        return F.cross_entropy(model(x) @ mix, y) * weight

    x, y = rows(4)
    step = compiled(mixed, (x, torch.eye(4), torch.tensor(2.0), y), policy=FULL_PRECISION)
    assert step.captured.batch_size is not None
    assert step.captured.batch_size.open_dims == (True, False, False, True)
    x, y = rows(7)
    found = step(x, torch.eye(4), torch.tensor(2.0), y)
    torch.testing.assert_close(found, 2 * F.cross_entropy(step._model(x), y), rtol=0.1, atol=0.1)
    assert len(step._graphs) == 1


def test_a_batch_is_laid_out_like_the_example() -> None:
    x, y = pictures(6)
    near = x.to(memory_format=torch.channels_last)
    step = compiled(classes, (near, y), convolution, policy=FULL_PRECISION)
    x, y = pictures(3)
    values = step.values(x, y)
    assert values["batch.0"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(values["batch.0"], x)


def test_where_torch_chooses_by_size_a_graph_is_for_the_sizes_of_its_choice() -> None:
    """With one thread, convolutions in FP32 are another kernel's from 16 pictures on."""
    options = {"policy": FULL_PRECISION}
    both = [
        compiled(classes, pictures(6), convolution, dynamic=d, **options) for d in (True, False)
    ]
    for size in (6, 3, 17, 40, 6):
        mine, theirs = (step(*pictures(size, size)) for step in both)
        assert torch.equal(mine, theirs)
    assert len(both[0]._graphs) <= 2


def test_inductor_compiles_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(*args: Any, **options: Any) -> Any:
        made.append(args)
        return compile_graph(*args, **options)

    compile_graph = inductor.compiled
    monkeypatch.setattr(recompute, "compiled", counted)
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
    step = compiled(squares, rows(6), lambda: model, policy=FULL_PRECISION, backend="inductor")
    for size in (6, 2, 9):
        given = rows(size)
        torch.autograd.backward(squares(model, *given))
        for name, gradient in step.gradients(*given).items():
            torch.testing.assert_close(gradient, model.get_parameter(name).grad)
        model.zero_grad()
    assert (len(made), len(step._graphs)) == (1, 1)


def test_what_inductor_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("no such size")

    monkeypatch.setattr(recompute, "compiled", broken)
    with pytest.raises(CannotCapture, match="for an open batch size"):
        compiled(classes, rows(6), backend="inductor")
