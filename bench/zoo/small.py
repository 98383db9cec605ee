"""Small sizes of Hugging Face's configurations, and words to train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

Made = tuple[nn.Module, dict[str, Any]]

WORDS = 100
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
}
BERT: dict[str, Any] = TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
del BERT["attention_dropout"]
PICTURE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DECODER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
SERIES: dict[str, Any] = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    **DECODER,
}
STATES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
}


def draw() -> torch.Generator:
    """Return a new random generator, always in the same state."""
    return torch.Generator().manual_seed(0)


def words() -> dict[str, torch.Tensor]:
    """Return two rows of sixteen words."""
    drawn = torch.randint(5, WORDS - 10, (2, 16), generator=draw())
    return {"input_ids": drawn, "attention_mask": torch.ones_like(drawn)}


def next_word() -> dict[str, torch.Tensor]:
    """Return words, and the same as labels."""
    return words() | {"labels": words()["input_ids"]}


def build(kind: str, batch: dict[str, Any], **options: Any) -> Made:
    """Return a model of a class, from its own configuration with these options, and the batch."""
    model_class = getattr(transformers, kind)
    configuration = model_class.config_class(**options)
    if hasattr(configuration, "use_cache"):
        configuration.use_cache = False
    torch.manual_seed(0)
    model: nn.Module = model_class(configuration).train()
    return model, batch


def of(kind: str, batch: Callable[[], dict[str, Any]], **options: Any) -> Callable[[], Made]:
    """Return a function that builds a model and its batch; see `build`."""
    return lambda: build(kind, batch(), **options)
