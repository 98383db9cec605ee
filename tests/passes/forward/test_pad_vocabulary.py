"""A linear of an odd number of outputs gets zeros behind its weight, which nobody sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from oracles.error import errors
from programs.graphs import WORKLOADS, forward_of
from torch import Tensor, nn

from mpcompile import pipeline
from mpcompile.lower.lower import Lowering
from mpcompile.passes.forward.chunk_head import ChunkHead
from mpcompile.passes.forward.pad_vocabulary import PadVocabulary
from mpcompile.passes.order import matmul_passes
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.precision import Precision
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.arena import ArenaPosition
from mpcompile.step.transformed import Choices, Transformed

WORDS, WIDTH = 1027, 16


class Words(nn.Module):
    """An embedding, a layer norm, and a head that is the embedding unless it has a bias."""

    def __init__(self, words: int, bias: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, words, bias=bias)
        if not bias:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.words(tokens)))
        return result


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens)
    return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), tokens.flatten())


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def made(
    words: int = WORDS,
    bias: bool = False,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam,
) -> Workload:
    torch.manual_seed(0)
    model = Words(words, bias)
    tokens = torch.randint(0, words, (8, 16))
    return Workload(model, (tokens,), loss, optimizer(model))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small linears be padded too."""

    def passes(positions: Any, without: Any = ()) -> Any:
        order = matmul_passes(positions, without)
        return [PadVocabulary(positions, 0) if isinstance(p, PadVocabulary) else p for p in order]

    monkeypatch.setattr(pipeline, "matmul_passes", passes)


def padded(workload: Workload, policy: Policy | None = None) -> Transformed:
    found = transform(workload, Choices(policy=policy or Policy()))
    assert found.step is not None
    found.step.check()
    return found


def test_the_linear_is_wider_and_its_result_sliced() -> None:
    forward = forward_of(made(bias=True))
    rewrite = PadVocabulary(
        {item.node: ArenaPosition("arena0", 100, True) for item in forward.inputs}, 0
    )
    assert rewrite(forward.module) == 1
    forward.module.graph.lint()
    assert_expected_inline(
        graph_text(forward.module.graph),
        """\
p_model_words_weight      f32[1027,16]    input
p_model_norm_weight       f32[16]         input
p_model_norm_bias         f32[16]         input
p_model_head_weight       f32[1027,16]    input
p_model_head_bias         f32[1027]       input
batch_0                   i64[8,16]       input
p_model_words_weight_f16  f16[1027,16]    _to_copy p_model_words_weight dtype=f16
embedding                 f16[8,16,16]    embedding p_model_words_weight_f16 batch_0
embedding_f32             f32[8,16,16]    _to_copy embedding dtype=f32
layer_norm                f32[8,16,16]    layer_norm embedding_f32 [16] p_model_norm_weight p_model_norm_bias 1e-05 False
p_model_head_weight_f16   f16[1027,16]    _to_copy p_model_head_weight dtype=f16
p_model_head_bias_f16     f16[1027]       _to_copy p_model_head_bias dtype=f16
layer_norm_f16            f16[8,16,16]    _to_copy layer_norm dtype=f16
new_zeros_default         f16[5,16]       new_zeros p_model_head_weight_f16 [5,16]
cat_default               f16[1032,16]    cat [p_model_head_weight_f16,new_zeros_default]
new_zeros_default_1       f16[5]          new_zeros p_model_head_bias_f16 [5]
cat_default_1             f16[1032]       cat [p_model_head_bias_f16,new_zeros_default_1]
linear_default            f16[8,16,1032]  linear layer_norm_f16 cat_default cat_default_1
slice_tensor              f16[8,16,1027]  slice linear_default -1 0 1027
view                      f16[128,1027]   reshape slice_tensor [-1,1027]
flatten                   i64[128]        flatten batch_0
view_f32                  f32[128,1027]   _to_copy view dtype=f32
cross_entropy_loss        f32[]           cross_entropy_loss view_f32 flatten
return                                    cross_entropy_loss""",
    )
    assert rewrite(forward.module) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_the_step_reads_the_arena_and_copies_nothing(bias: bool) -> None:
    found = padded(made(bias=bias))
    assert found.changes["pad_vocabulary"] == 1
    step = found.step
    assert step is not None
    head = "head.weight" if bias else "words.weight"
    assert step.joined[f"{head}.padded"] == (head,)
    assert step.slots[f"{head}.padded"].shape == (1032, WIDTH)
    assert ("head.bias.padded" in step.joined) == bias
    assert step.slots["words.weight.working"].shape == (WORDS, WIDTH)  # the embedding reads it
    names = {line.split()[2] for line in graph_text(step.gradient.graph).splitlines()}
    assert not names & {"cat", "constant_pad_nd", "new_zeros"}
    assert step.slots[f"grad.{head}"].shape == (WORDS, WIDTH)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_error_against_fp64_is_the_same(bias: bool, precision: Precision) -> None:
    workload, policy = made(bias=bias), Policy(precision=precision)
    found, _ = errors(workload.model, loss, [workload.batch], policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "matmul_passes", lambda *_: ())
        plain, _ = errors(workload.model, loss, [workload.batch], policy)
    assert 0 < found.gradient <= 1.001 * plain.gradient
    assert found.loss <= plain.loss + 1e-5


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01, amsgrad=True),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01, centered=True),
    "adadelta": lambda m: torch.optim.Adadelta(m.parameters(), 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_zeros_stay_zeros_and_training_goes_as_without(name: str) -> None:
    found = []
    for without in ((), ("pad_vocabulary",)):
        workload = made(optimizer=OPTIMIZERS[name])
        step = to_step(transform(workload, Choices(without=without)))
        found.append([float(step(*workload.batch)) for _ in range(4)])
        if without:
            continue
        whole = step._state["words.weight.padded"]
        weight = workload.model.get_parameter("words.weight")
        assert torch.equal(whole[:WORDS], weight.detach().half())
        assert not whole[WORDS:].any()
        arena = step.step.arena_of("words.weight")
        gap = slice(WORDS * WIDTH, arena.offsets[1])
        for key, value in step._state.items():
            if key.startswith(f"{arena.name}.") and value.shape == arena.shape:
                assert not value[gap].any(), key
        step.refresh()
        assert not whole[WORDS:].any()
    assert found[0] == pytest.approx(found[1], rel=1e-4)


class Noisy(torch.optim.SGD):
    """An elementwise optimizer that moves a weight whose gradient is zero."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(0.001)


def test_where_zeros_would_not_stay_the_linear_is_left_alone() -> None:
    found = padded(made(optimizer=lambda m: Noisy(m.parameters(), 0.1)))
    assert found.changes["pad_vocabulary"] == 0
    assert found.step is not None
    assert not found.step.arenas[0].zeros


def frozen(model: nn.Module) -> torch.optim.Optimizer:
    model.get_parameter("head.weight").requires_grad_(False)
    return adam(model)


@pytest.mark.parametrize(
    "workload", [made(1032), made(bias=True, optimizer=frozen), WORKLOADS["matrices"]()]
)
def test_other_linears_are_left_alone(workload: Workload) -> None:
    assert padded(workload).changes["pad_vocabulary"] == 0


def test_in_fp32_nothing_is_padded() -> None:
    assert padded(made(), FULL_PRECISION).changes["pad_vocabulary"] == 0


def test_a_small_result_is_not_worth_it() -> None:
    forward = forward_of(made())
    positions = {item.node: ArenaPosition("arena0", 100, True) for item in forward.inputs}
    assert PadVocabulary(positions)(forward.module) == 0
    assert PadVocabulary(positions, 128 * WORDS + 1)(forward.module) == 0
    tight = {name: ArenaPosition("arena0", 5 * WIDTH - 1, True) for name in positions}
    assert PadVocabulary(tight, 0)(forward.module) == 0
    assert PadVocabulary(positions, 128 * WORDS)(forward.module) == 1


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_a_padded_head_in_chunks_agrees_and_a_checkpoint_fits(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(bias=True)
    peer = to_step(transform(plain, Choices(without=["pad_vocabulary", "chunk_head"])))

    def passes(positions: Any, without: Any = ()) -> Any:
        return (PadVocabulary(positions, 0), ChunkHead(0, 2 * WORDS * 16))

    monkeypatch.setattr(pipeline, "matmul_passes", passes)
    workload = made(bias=True)
    found = transform(workload)
    assert (found.changes["pad_vocabulary"], found.changes["chunk_head"]) == (1, 1)
    step = to_step(found, Lowering(backend=backend))
    for _ in range(2):
        peer(*plain.batch)
    assert plain.optimizer is not None
    assert workload.optimizer is not None
    workload.model.load_state_dict(plain.model.state_dict())
    workload.optimizer.load_state_dict(plain.optimizer.state_dict())
    mine, other = step.gradients(*workload.batch), peer.gradients(*plain.batch)
    for name, value in other.items():
        assert mine[name].shape == value.shape
        assert float((mine[name] - value).norm()) < 2e-3 * float(value.norm()), name
    assert float(step(*workload.batch)) == pytest.approx(float(peer(*plain.batch)), rel=1e-4)
    assert not step._state["head.weight.padded"][WORDS:].any()
