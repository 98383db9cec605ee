"""Hugging Face's families whose configuration or batch is special: detection, sound, time, pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

Made = tuple[nn.Module, dict[str, Any]]

_WORDS = 100
_TEXT = {
    "vocab_size": _WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
}
_BERT = _TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
del _BERT["attention_dropout"]
_PICTURE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_DECODER = {
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
}
_SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    **_DECODER,
}
_STATES = {"vocab_size": _WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _words() -> dict[str, torch.Tensor]:
    words = torch.randint(5, _WORDS - 10, (2, 16), generator=_draw())
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def _next_word() -> dict[str, torch.Tensor]:
    return _words() | {"labels": _words()["input_ids"]}


def _picture(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=_draw())


def _boxes(side: int = 64) -> dict[str, Any]:
    labels = [
        {
            "class_labels": torch.tensor([1, 2][:count]),
            "boxes": torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.6, 0.4, 0.2, 0.2]][:count]),
        }
        for count in (2, 1)
    ]
    return {"pixel_values": _picture(side), "labels": labels}


def _masks(side: int = 64) -> dict[str, Any]:
    masks = [(torch.rand(count, side, side, generator=_draw()) > 0.5).float() for count in (2, 1)]
    classes = [torch.tensor([1, 2]), torch.tensor([0])]
    return {"pixel_values": _picture(side), "mask_labels": masks, "class_labels": classes}


def _pixels(side: int = 64) -> dict[str, Any]:
    labels = torch.randint(0, 5, (2, side, side), generator=_draw())
    return {"pixel_values": _picture(side), "labels": labels}


def _pair() -> dict[str, Any]:
    return _words() | {"pixel_values": _picture(), "return_loss": True}


def _video() -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, 4, 3, 32, 32, generator=_draw()),
        "labels": torch.tensor([0, 1]),
    }


def _sound() -> dict[str, Any]:
    return {
        "input_features": torch.randn(2, 80, 64, generator=_draw()),
        "labels": torch.randint(5, 90, (2, 8), generator=_draw()),
    }


def _series(past: int = 10) -> dict[str, Any]:
    draw = _draw()
    return {
        "past_values": torch.randn(2, past, generator=draw),
        "past_time_features": torch.randn(2, past, 2, generator=draw),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, 4, generator=draw),
        "future_time_features": torch.randn(2, 4, 2, generator=draw),
    }


def _channels() -> dict[str, Any]:
    draw = _draw()
    return {
        "past_values": torch.randn(2, 16, 3, generator=draw),
        "future_values": torch.randn(2, 4, 3, generator=draw),
    }


def _resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )


def _resnet_levels() -> Any:
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _swin() -> Any:
    return transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=32,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_size=2,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _detr(kind: str, backbone: Callable[[], Any] = _resnet, **more: Any) -> Callable[[], Made]:
    def make() -> Made:
        return _build(
            kind,
            _boxes(),
            **_DECODER,
            backbone_config=backbone(),
            num_queries=6,
            num_labels=4,
            use_timm_backbone=False,
            **more,
        )

    return make


def _build(kind: str, batch: dict[str, Any], **options: Any) -> Made:
    """Return a model of a class, from its own configuration with these options, and the batch."""
    model_class = getattr(transformers, kind)
    configuration = model_class.config_class(**options)
    if hasattr(configuration, "use_cache"):
        configuration.use_cache = False
    torch.manual_seed(0)
    model: nn.Module = model_class(configuration).train()
    return model, batch


def _of(kind: str, batch: Callable[[], dict[str, Any]], **options: Any) -> Callable[[], Made]:
    return lambda: _build(kind, batch(), **options)


_TWO = {"text_config": _TEXT, "vision_config": _PICTURE, "projection_dim": 16}

FAMILIES: dict[str, Callable[[], Made]] = {
    "detr": _detr("DetrForObjectDetection"),
    "conditional_detr": _detr("ConditionalDetrForObjectDetection"),
    "table-transformer": _detr("TableTransformerForObjectDetection"),
    "dab-detr": _detr("DabDetrForObjectDetection", hidden_size=32),
    "deformable_detr": _detr(
        "DeformableDetrForObjectDetection", _resnet_levels, num_feature_levels=3
    ),
    "rt_detr": lambda: _build(
        "RTDetrForObjectDetection",
        _boxes(),
        backbone_config=_resnet_levels(),
        encoder_in_channels=[24, 32, 40],
        encoder_hidden_dim=32,
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=12,
        num_denoising=0,
        num_labels=4,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
    "yolos": _of(
        "YolosForObjectDetection",
        _boxes,
        **{**_PICTURE, "image_size": [64, 64]},
        num_detection_tokens=6,
        num_labels=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "segformer": _of(
        "SegformerForSemanticSegmentation",
        _pixels,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
        num_attention_heads=[1, 2, 2, 4],
        num_labels=5,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
    ),
    "upernet": lambda: _build(
        "UperNetForSemanticSegmentation",
        _pixels(),
        backbone_config=_swin(),
        hidden_size=16,
        auxiliary_in_channels=128,
        auxiliary_channels=16,
        num_labels=5,
        use_auxiliary_head=True,
    ),
    "maskformer": lambda: _build(
        "MaskFormerForInstanceSegmentation",
        _masks(),
        backbone_config=_swin(),
        decoder_config=transformers.DetrConfig(
            **_DECODER, num_queries=6, backbone_config=_resnet(), use_timm_backbone=False
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=4,
    ),
    "mask2former": lambda: _build(
        "Mask2FormerForUniversalSegmentation",
        _masks(),
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        train_num_points=64,
        num_labels=4,
    ),
    "clip": _of("CLIPModel", _pair, **_TWO),
    "clipseg": _of(
        "CLIPSegModel", _pair, text_config=_TEXT, vision_config=_PICTURE, projection_dim=16
    ),
    "siglip": _of("SiglipModel", _pair, text_config=_TEXT, vision_config=_PICTURE),
    "chinese_clip": _of("ChineseCLIPModel", _pair, **{**_TWO, "text_config": _BERT}),
    "altclip": _of("AltCLIPModel", _pair, **{**_TWO, "text_config": _BERT | {"project_dim": 16}}),
    "blip": _of("BlipModel", _pair, **{**_TWO, "text_config": _BERT}),
    "vilt": _of(
        "ViltForQuestionAnswering",
        lambda: _words() | {"pixel_values": _picture(), "labels": torch.eye(2, 5)},
        **_BERT,
        image_size=32,
        patch_size=8,
        num_labels=5,
    ),
    "vit_mae": _of(
        "ViTMAEForPreTraining",
        lambda: {
            "pixel_values": _picture(),
            "noise": torch.rand(2, 16, generator=_draw()),
        },
        **_PICTURE,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
    ),
    "videomae": _of(
        "VideoMAEForVideoClassification",
        _video,
        **_PICTURE,
        num_frames=4,
        num_labels=3,
        decoder_hidden_size=32,
    ),
    "vivit": _of(
        "VivitForVideoClassification",
        _video,
        **_PICTURE | {"patch_size": 8},
        num_frames=4,
        tubelet_size=[2, 8, 8],
        num_labels=3,
    ),
    "timesformer": _of(
        "TimesformerForVideoClassification", _video, **_PICTURE, num_frames=4, num_labels=3
    ),
    "whisper": _of(
        "WhisperForConditionalGeneration",
        _sound,
        **_DECODER,
        vocab_size=_WORDS,
        max_source_positions=32,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "speech_to_text": _of(
        "Speech2TextForConditionalGeneration",
        lambda: _sound() | {"input_features": torch.randn(2, 64, 80, generator=_draw())},
        **_DECODER,
        vocab_size=_WORDS,
        conv_channels=32,
        max_source_positions=64,
        max_target_positions=32,
        decoder_start_token_id=1,
    ),
    "time_series_transformer": _of("TimeSeriesTransformerForPrediction", _series, **_SERIES),
    "informer": _of("InformerForPrediction", _series, **_SERIES),
    "autoformer": _of("AutoformerForPrediction", lambda: _series(10), **_SERIES, label_length=4),
    "patchtst": _of(
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
    "patchtsmixer": _of(
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
    "mamba": _of("MambaForCausalLM", _next_word, **_STATES),
    "falcon_mamba": _of("FalconMambaForCausalLM", _next_word, **_STATES),
    "mamba2": _of(
        "Mamba2ForCausalLM",
        _next_word,
        **_STATES,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
    ),
    "jamba": _of(
        "JambaForCausalLM",
        _next_word,
        **_TEXT,
        num_key_value_heads=2,
        num_experts=4,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    ),
    "deepseek_v3": _of(
        "DeepseekV3ForCausalLM",
        _next_word,
        **_TEXT,
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
    "recurrent_gemma": _of(
        "RecurrentGemmaForCausalLM",
        _next_word,
        **_TEXT,
        lru_width=32,
        num_key_value_heads=2,
        attention_window_size=16,
        block_types=["recurrent", "attention"],
    ),
    "llava": lambda: _build(
        "LlavaForConditionalGeneration",
        _next_word() | _with_picture(),
        text_config=transformers.LlamaConfig(**_TEXT, num_key_value_heads=2),
        vision_config=transformers.CLIPVisionConfig(**_PICTURE),
        image_token_id=99,
        vision_feature_layer=-1,
    ),
    "vision-encoder-decoder": lambda: _encoder_decoder(),
}
"""Per family a function that returns a small model without dropout, and a batch."""


def _with_picture() -> dict[str, torch.Tensor]:
    """Return words whose first sixteen are the patches of a picture."""
    words = torch.cat([torch.full((2, 16), 99), _words()["input_ids"]], 1)
    mask = torch.ones_like(words)
    labels = words.masked_fill(words == 99, -100)
    return {
        "input_ids": words,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": _picture(),
    }


def _encoder_decoder() -> Made:
    configuration = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_PICTURE), transformers.BertConfig(**_BERT)
    )
    configuration.decoder_start_token_id, configuration.pad_token_id = 1, 0
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(configuration)
    return model.train(), {"pixel_values": _picture(), "labels": _words()["input_ids"][:, :8]}
