"""Hugging Face's families of sound, time series and state spaces, with batches of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.zoo.small import DECODER, SERIES, STATES, TEXT, WORDS, Made, draw, next_word, of


def _sound() -> dict[str, Any]:
    return {
        "input_features": torch.randn(2, 80, 64, generator=draw()),
        "labels": torch.randint(5, 90, (2, 8), generator=draw()),
    }


def _series(past: int = 10) -> dict[str, Any]:
    state = draw()
    return {
        "past_values": torch.randn(2, past, generator=state),
        "past_time_features": torch.randn(2, past, 2, generator=state),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, 4, generator=state),
        "future_time_features": torch.randn(2, 4, 2, generator=state),
    }


def _channels() -> dict[str, Any]:
    state = draw()
    return {
        "past_values": torch.randn(2, 16, 3, generator=state),
        "future_values": torch.randn(2, 4, 3, generator=state),
    }


FAMILIES: dict[str, Callable[[], Made]] = {
    "whisper": of(
        "WhisperForConditionalGeneration",
        _sound,
        **DECODER,
        vocab_size=WORDS,
        max_source_positions=32,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "speech_to_text": of(
        "Speech2TextForConditionalGeneration",
        lambda: _sound() | {"input_features": torch.randn(2, 64, 80, generator=draw())},
        **DECODER,
        vocab_size=WORDS,
        conv_channels=32,
        max_source_positions=64,
        max_target_positions=32,
        decoder_start_token_id=1,
    ),
    "time_series_transformer": of("TimeSeriesTransformerForPrediction", _series, **SERIES),
    "informer": of("InformerForPrediction", _series, **SERIES),
    "autoformer": of("AutoformerForPrediction", lambda: _series(10), **SERIES, label_length=4),
    "patchtst": of(
        "PatchTSTForPrediction",
        _channels,
        num_input_channels=3,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        prediction_length=4,
        head_dropout=0.0,
    ),
    "patchtsmixer": of(
        "PatchTSMixerForPrediction",
        _channels,
        num_input_channels=3,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_layers=2,
        prediction_length=4,
        dropout=0.0,
        head_dropout=0.0,
    ),
    "mamba": of("MambaForCausalLM", next_word, **STATES),
    "falcon_mamba": of("FalconMambaForCausalLM", next_word, **STATES),
    "mamba2": of(
        "Mamba2ForCausalLM",
        next_word,
        **STATES,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
    ),
    "jamba": of(
        "JambaForCausalLM",
        next_word,
        **TEXT,
        num_key_value_heads=2,
        num_experts=4,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    ),
    "deepseek_v3": of(
        "DeepseekV3ForCausalLM",
        next_word,
        **TEXT,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
    "recurrent_gemma": of(
        "RecurrentGemmaForCausalLM",
        next_word,
        **TEXT,
        lru_width=32,
        num_key_value_heads=2,
        attention_window_size=16,
        block_types=["recurrent", "attention"],
    ),
}
"""Per family a function that returns a small model without dropout, and a batch."""
