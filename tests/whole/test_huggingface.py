"""Models of Hugging Face, made from a config: captured whole, and as near FP64 as autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles.error import SCALE, autocast, compare, errors, gradients_of, reference

from mpcompile.integrations.dynamo_backend import mpcompile

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def classifier() -> Any:
    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=4,
        **SMALL,
    )
    return transformers.AutoModelForSequenceClassification.from_config(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=16,
        n_embd=32,
        n_layer=1,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, max_position_embeddings=16, **SMALL
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def classify(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    return loss


def predict(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, attention_mask=mask, labels=tokens).loss
    return loss


each_model = pytest.mark.parametrize(
    ("make", "loss"),
    [(classifier, classify), (gpt2, predict), (llama, predict)],
    ids=["bert", "gpt2", "llama"],
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    torch.compiler.reset()


def sentences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.randint(4, 17, (8, 1))
    tokens, labels = torch.randint(64, (8, 16)), torch.randint(4, (8,))
    return tokens, (torch.arange(16) < lengths).long(), labels


@each_model
def test_a_step_is_as_near_fp64_as_autocast(make: Any, loss: Any) -> None:
    found, allowed = errors(make().train(), loss, [sentences()])
    assert 0 < found.gradient <= 3 * allowed.gradient
    assert found.loss <= 3 * allowed.loss + 2**-12


@each_model
def test_the_backend_is_too(make: Any, loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = make().train(), sentences()
    truth, peer = reference(model, loss, batch), autocast(model, loss, batch)
    mine = copy.deepcopy(model)
    with caplog.at_level("INFO", "mpcompile"):
        value = loss(torch.compile(mine, backend=mpcompile), *batch)
    assert "compute in 16 bits" in caplog.text
    assert "stays in FP32" not in caplog.text
    torch.autograd.backward(value * SCALE)
    ours = float(value.detach()), gradients_of(mine, SCALE)
    found, allowed = compare([ours], [truth]), compare([peer], [truth])
    assert 0 < found.gradient <= 3 * allowed.gradient
    assert found.loss <= 3 * allowed.loss + 2**-12
