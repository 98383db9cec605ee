"""A large head is computed in chunks of rows: fewer bytes, the same loss, errors no larger."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from oracles.error import errors
from programs.graphs import forward_of
from torch import Tensor, nn

from bench.memory.saved import peak_of
from mpcompile import pipeline
from mpcompile.lower.lower import Lowering
from mpcompile.lower.recompute import cut
from mpcompile.passes.forward.chunk_head import ChunkHead
from mpcompile.passes.order import matmul_passes
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.precision import Precision
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.liveness import peak, saved_bytes, tensor_bytes
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Choices, Transformed

WORDS, WIDTH, SENTENCES, LENGTH = 96, 8, 4, 65
ROWS = SENTENCES * (LENGTH - 1)
SMALL = ChunkHead(least=0, chunk=2 * WORDS * ROWS // 4)


class Words(nn.Module):
    """An embedding, a layer norm, and a head that is the embedding unless it has a bias."""

    def __init__(self, bias: bool, words: int = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=bias)
        if not bias:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.words(tokens)))
        return result


def shifted(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cut the last logits off, as Hugging Face's models do."""
    logits = model(tokens)[:, :-1].contiguous()
    return nn.functional.cross_entropy(
        logits.view(-1, logits.shape[-1]), tokens[:, 1:].flatten(), ignore_index=3
    )


def summed(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )


def made(
    loss: Callable[..., Tensor] = shifted, bias: bool = False, length: int = LENGTH, **sizes: int
) -> Workload:
    torch.manual_seed(0)
    model = Words(bias, **sizes)
    tokens = torch.randint(0, WORDS, (SENTENCES, length))
    return Workload(model, (tokens,), loss, torch.optim.AdamW(model.parameters(), lr=0.01))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small heads be chunked too."""
    _use(monkeypatch, SMALL)


def _use(monkeypatch: pytest.MonkeyPatch, head: ChunkHead) -> None:
    def passes(places: Any, without: Any = ()) -> Any:
        order = matmul_passes(places, without)
        return [head if isinstance(item, ChunkHead) else item for item in order]

    monkeypatch.setattr(pipeline, "matmul_passes", passes)


def test_the_call_takes_the_place_of_linear_and_loss() -> None:
    module = forward_of(made()).module
    assert SMALL(module) == 1
    module.graph.lint()
    assert_expected_inline(
        graph_text(module.graph),
        """\
p_model_words_weight      f32[96,8]    input
p_model_norm_weight       f32[8]       input
p_model_norm_bias         f32[8]       input
batch_0                   i64[4,65]    input
p_model_words_weight_f16  f16[96,8]    _to_copy p_model_words_weight dtype=f16
embedding                 f16[4,65,8]  embedding p_model_words_weight_f16 batch_0
embedding_f32             f32[4,65,8]  _to_copy embedding dtype=f32
layer_norm                f32[4,65,8]  layer_norm embedding_f32 [8] p_model_norm_weight p_model_norm_bias 1e-05 False
layer_norm_f16            f16[4,65,8]  _to_copy layer_norm dtype=f16
slice_2                   i64[4,64]    slice batch_0 1 1 9223372036854775807
flatten                   i64[256]     flatten slice_2
slice_tensor              f16[4,64,8]  slice layer_norm_f16 1 0 -1
reshape_default           f16[256,8]   reshape slice_tensor [256,8]
chunked_head              f32[]        chunked_head reshape_default p_model_words_weight_f16 None flatten classes=96 rows=64 ignored=3 mean=True
return                                 chunked_head""",
    )
    assert SMALL(module) == 0


@pytest.mark.parametrize("loss", [shifted, summed])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_error_against_fp64_is_no_larger(
    loss: Callable[..., Tensor], bias: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = made(loss, bias)
    policy = Policy(precision=precision)
    whole, _ = errors(workload.model, loss, [workload.batch], policy)
    _use(monkeypatch, SMALL)
    chunked, _ = errors(workload.model, loss, [workload.batch], policy)
    assert transform(workload, Choices(policy=policy)).changes["chunk_head"] == 1
    assert 0 < chunked.gradient <= 1.01 * whole.gradient
    assert chunked.loss <= 1.01 * whole.loss + 1e-5 * ROWS


@pytest.mark.usefixtures("small")
def test_one_chunk_of_logits_is_alive_at_a_time() -> None:
    chunked, whole = transform(made()), transform(made(), Choices(without=["chunk_head"]))
    assert chunked.changes["chunk_head"] == 1
    assert chunked.step is not None
    assert whole.step is not None
    graph = chunked.step.gradient.graph
    logits = ROWS * WORDS
    largest = max(tensor_bytes(n.meta["val"]) for n in graph.nodes if "val" in n.meta)
    assert largest <= 4 * logits // 4
    assert peak(graph).bytes < 4 * logits
    assert peak(whole.step.gradient.graph).bytes > 10 * logits
    assert saved_bytes(graph) < saved_bytes(whole.step.gradient.graph) / 4


@pytest.mark.usefixtures("small")
def test_forward_knows_the_source_line_and_backward_is_short() -> None:
    step = transform(made()).step
    assert step is not None
    nodes = [n for n in step.gradient.graph.nodes if n.op == "call_function"]
    late = [item for n in nodes if n.meta.get("backward") for item in n.all_input_nodes]
    shapes = [value.shape for n in late if isinstance(value := n.meta["val"], Tensor)]
    assert len(shapes) > 10
    assert not any(shape[-1:] == (WORDS,) for shape in shapes)
    heads = [n for n in nodes if n.name.startswith("logsumexp")]
    assert {n.meta["where"].file.rpartition("/")[2] for n in heads} == {"test_chunk_head.py"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scale", [None, LossScale.static(2.0**10)])
def test_training_goes_as_without(scale: LossScale | None) -> None:
    found = []
    for without in ((), ("chunk_head",)):
        workload = made()
        step = to_step(transform(workload, Choices(loss_scale=scale, without=without)))
        losses = [float(step(*workload.batch)) for _ in range(8)]
        assert step.taken + step.skipped == 8
        found.append((losses, step.skipped, step.loss_scale))
    assert found[0][0] == pytest.approx(found[1][0], rel=2e-3)
    assert found[0][1:] == found[1][1:]


def test_inductor_agrees_keeps_no_logits_and_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, ChunkHead(least=0, chunk=2 * ROWS * 1000 // 8))
    peaks, gradients, kept = [], [], []
    for without in ((), ("chunk_head",)):
        workload = made(words=1000)
        transformed = transform(
            workload, Choices(policy=Policy(precision=Precision.BF16), without=without)
        )
        assert transformed.step is not None
        kept.append(cut(transformed.step.gradient, transformed.step.slots).saved_bytes)
        step = to_step(transformed, Lowering(backend="inductor"))
        gradients.append(step.gradients(*workload.batch))
        peaks.append(peak_of(lambda step=step, w=workload: step.gradients(*w.batch)))  # type: ignore[misc]
    for name, value in gradients[0].items():
        error = float((value - gradients[1][name]).norm() / gradients[1][name].norm())
        assert error < 0.02, name
    assert peaks[0] < 0.6 * peaks[1]
    assert kept[0] < 0.2 * kept[1]


def weighted(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).flatten(0, 1)
    return nn.functional.cross_entropy(logits, tokens.flatten(), torch.ones(WORDS))


def smoothed(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).flatten(0, 1)
    return nn.functional.cross_entropy(logits, tokens.flatten(), label_smoothing=0.1)


def unreduced(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).flatten(0, 1)
    losses: Tensor = nn.functional.cross_entropy(logits, tokens.flatten(), reduction="none")
    return losses.mean()


def read_twice(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).flatten(0, 1)
    loss: Tensor = nn.functional.cross_entropy(logits, tokens.flatten()) + logits.square().mean()
    return loss


def transposed(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).transpose(1, 2), tokens)


def changed(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(torch.tanh(model(tokens)).flatten(0, 1), tokens.flatten())


def likely(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).flatten(0, 1)
    return nn.functional.cross_entropy(logits, torch.softmax(logits.detach(), -1))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "loss",
    [weighted, smoothed, unreduced, read_twice, transposed, changed, likely],
    ids=lambda f: f.__name__,
)
def test_other_heads_are_left_alone(loss: Callable[..., Tensor]) -> None:
    assert transform(made(loss)).changes["chunk_head"] == 0


@pytest.mark.usefixtures("small")
def test_in_fp32_the_step_stays_bitwise_plain_pytorch() -> None:
    workload = made()
    peer = copy.deepcopy(workload.model)
    transformed = transform(workload, Choices(policy=FULL_PRECISION))
    assert transformed.changes["chunk_head"] == 0
    loss = shifted(peer, *workload.batch)
    assert float(to_step(transformed)(*workload.batch)) == float(loss.detach())


def chunks(head: ChunkHead, **sizes: Any) -> list[int]:
    transformed = _with(head, **sizes)
    assert transformed.step is not None
    graph = transformed.step.gradient.graph
    return [n.meta["val"].shape[0] for n in graph.nodes if n.name.startswith("logsumexp")]


def _with(head: ChunkHead, **sizes: Any) -> Transformed:
    with pytest.MonkeyPatch.context() as patch:
        _use(patch, head)
        return transform(made(**sizes))


def test_chunks_are_even_where_they_can_be() -> None:
    assert chunks(SMALL) == [64] * 4
    assert chunks(ChunkHead(0, 2 * WORDS * ROWS // 3)) == [64] * 4
    assert chunks(ChunkHead(0, 2 * WORDS * ROWS // 2)) == [128] * 2
    assert chunks(ChunkHead(0, 2 * WORDS * ROWS // 3), length=62) == [82, 82, 80]


def test_a_head_is_chunked_only_where_that_needs_less() -> None:
    size = 2 * WORDS * ROWS
    assert chunks(ChunkHead(size, size // 4))
    assert not chunks(ChunkHead(size + 1, size // 4))
    assert not chunks(ChunkHead(0, size))
    assert chunks(ChunkHead(0, 0), width=ROWS // 8)
    assert not chunks(ChunkHead(0, 0), width=ROWS // 4)
    assert ChunkHead() == ChunkHead(64 << 20, 64 << 20)
