"""Families of Hugging Face models, made small from their own configurations, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto as auto

TASKS: dict[str, Any] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "translation": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "speech": auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "audio": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "text": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
"""Per task the families and their classes, as the library lists them."""

LARGEST = 20_000_000
"""Parameters; a family that stays larger is left out."""

_WIDTH, _HEADS, _LAYERS, _HIDDEN, _WORDS, _POSITIONS = 32, 4, 2, 64, 100, 64
_SMALL: dict[str, int | float] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "projection_dim"),
        _WIDTH,
    ),
    **dict.fromkeys(
        ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "encoder_layers"), _LAYERS
    ),
    "decoder_layers": _LAYERS,
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
        _HEADS,
    ),
    "decoder_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim", "state_size", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"),
        _HIDDEN,
    ),
    "d_inner": _HIDDEN,
    "moe_intermediate_size": _WIDTH,
    "vocab_size": _WORDS,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("embedding_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("type_vocab_size", "eos_token_id"), 2),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    "pad_token_id": 0,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    **dict.fromkeys(
        (
            *("hidden_dropout", "attention_dropout", "hidden_dropout_prob", "dropout"),
            *("attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
            *("activation_dropout", "classifier_dropout", "encoder_layerdrop", "layerdrop"),
            *("decoder_layerdrop", "dropout_rate", "drop_path_rate"),
        ),
        0.0,
    ),
}


def families() -> Iterator[tuple[str, str, str]]:
    """Yield each family once: its name, its first task and the class for it."""
    seen: set[str] = set()
    for task, known in TASKS.items():
        for family, kind in known.items():
            if family not in seen:
                seen.add(family)
                yield family, task, kind[0] if isinstance(kind, tuple | list) else kind


def make(task: str, kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a small model without dropout, and a batch with labels.

    Raises:
        ValueError: the model stays too large.
        Exception: whatever the library raises for a configuration that does not fit together.
    """
    model_class = getattr(transformers, kind)
    configuration = model_class.config_class()
    shrink(configuration)
    torch.manual_seed(0)
    model: nn.Module = model_class(configuration).train()
    if (count := sum(value.numel() for value in model.parameters())) > LARGEST:
        raise ValueError(f"{count} parameters")
    return model, _batch(task, configuration)


def shrink(configuration: Any) -> None:
    """Make a configuration small, and those inside it."""
    for key, value in _SMALL.items():
        before = getattr(configuration, key, None)
        if isinstance(before, int | float) and not isinstance(before, bool):
            setattr(configuration, key, type(before)(value))
    if isinstance(getattr(configuration, "layer_types", None), list):
        configuration.layer_types = configuration.layer_types[:_LAYERS]
    configuration.use_cache = False
    if hasattr(configuration, "apply_spec_augment"):  # masks at random, like dropout
        configuration.apply_spec_augment = False
    configuration.pad_token_id, configuration.decoder_start_token_id = 0, 1
    for value in list(vars(configuration).values()):
        if isinstance(value, transformers.PretrainedConfig):
            shrink(value)


def _batch(task: str, configuration: Any) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(3, _WORDS - 10, (2, 16), generator=draw)
    text = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    size = getattr(configuration, "image_size", 32)
    side = size if isinstance(size, int) else 32
    sound = {"input_values": torch.randn(2, 4000, generator=draw)}
    labels = torch.tensor([0, 1])
    return {
        "causal": {**text, "labels": words.clone()},
        "masked": {**text, "labels": words.clone()},
        "translation": {**text, "labels": words[:, :8].clone()},
        "image": {"pixel_values": torch.randn(2, 3, side, side, generator=draw), "labels": labels},
        "speech": {**sound, "labels": torch.randint(3, 20, (2, 4), generator=draw)},
        "audio": {**sound, "labels": labels},
        "text": {**text, "labels": labels},
    }[task]
