"""Models of Hugging Face, made from a config: captured whole, and as near FP64 as autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import errors

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


@pytest.mark.parametrize(
    ("make", "loss"), [(classifier, classify), (gpt2, predict), (llama, predict)]
)
def test_it_is_as_near_fp64_as_autocast(
    monkeypatch: pytest.MonkeyPatch, make: Any, loss: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    model = make().train()
    lengths = torch.randint(4, 17, (8, 1))
    tokens, labels = torch.randint(64, (8, 16)), torch.randint(4, (8,))
    batch = (tokens, (torch.arange(16) < lengths).long(), labels)
    found, allowed = errors(model, loss, [batch])
    assert 0 < found.gradient <= 3 * allowed.gradient
    assert found.loss <= 3 * allowed.loss + 2**-12
