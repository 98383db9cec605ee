"""Hugging Face's families that see pictures: detection, segmentation, video, pairs with text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from bench.zoo.small import BERT, DECODER, PICTURE, TEXT, Made, build, draw, next_word, of, words

_configurations: Any = transformers


def _picture(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=draw())


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
    masks = [(torch.rand(count, side, side, generator=draw()) > 0.5).float() for count in (2, 1)]
    classes = [torch.tensor([1, 2]), torch.tensor([0])]
    return {"pixel_values": _picture(side), "mask_labels": masks, "class_labels": classes}


def _pixels(side: int = 64) -> dict[str, Any]:
    labels = torch.randint(0, 5, (2, side, side), generator=draw())
    return {"pixel_values": _picture(side), "labels": labels}


def _pair() -> dict[str, Any]:
    return words() | {"pixel_values": _picture(), "return_loss": True}


def _video() -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, 4, 3, 32, 32, generator=draw()),
        "labels": torch.tensor([0, 1]),
    }


def _with_picture() -> dict[str, torch.Tensor]:
    """Return words whose first sixteen are the patches of a picture."""
    both = torch.cat([torch.full((2, 16), 99), words()["input_ids"]], 1)
    mask = torch.ones_like(both)
    labels = both.masked_fill(both == 99, -100)
    return {
        "input_ids": both,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": _picture(),
    }


def _resnet() -> Any:
    return _configurations.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )


def _resnet_levels() -> Any:
    return _configurations.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _swin() -> Any:
    return _configurations.SwinConfig(
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
        return build(
            kind,
            _boxes(),
            **DECODER,
            backbone_config=backbone(),
            num_queries=6,
            num_labels=4,
            use_timm_backbone=False,
            **more,
        )

    return make


def _encoder_decoder() -> Made:
    configuration = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**PICTURE), transformers.BertConfig(**BERT)
    )
    configuration.decoder_start_token_id, configuration.pad_token_id = 1, 0
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(configuration)
    return model.train(), {"pixel_values": _picture(), "labels": words()["input_ids"][:, :8]}


_TWO: dict[str, Any] = {"text_config": TEXT, "vision_config": PICTURE, "projection_dim": 16}


FAMILIES: dict[str, Callable[[], Made]] = {
    "detr": _detr("DetrForObjectDetection"),
    "conditional_detr": _detr("ConditionalDetrForObjectDetection"),
    "table-transformer": _detr("TableTransformerForObjectDetection"),
    "dab-detr": _detr("DabDetrForObjectDetection", hidden_size=32),
    "deformable_detr": _detr(
        "DeformableDetrForObjectDetection", _resnet_levels, num_feature_levels=3
    ),
    "rt_detr": lambda: build(
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
    "yolos": of(
        "YolosForObjectDetection",
        _boxes,
        **{**PICTURE, "image_size": [64, 64]},
        num_detection_tokens=6,
        num_labels=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "segformer": of(
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
    "upernet": lambda: build(
        "UperNetForSemanticSegmentation",
        _pixels(),
        backbone_config=_swin(),
        hidden_size=16,
        auxiliary_in_channels=128,
        auxiliary_channels=16,
        num_labels=5,
        use_auxiliary_head=True,
    ),
    "maskformer": lambda: build(
        "MaskFormerForInstanceSegmentation",
        _masks(),
        backbone_config=_swin(),
        decoder_config=_configurations.DetrConfig(
            **DECODER, num_queries=6, backbone_config=_resnet(), use_timm_backbone=False
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=4,
    ),
    "mask2former": lambda: build(
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
    "clip": of("CLIPModel", _pair, **_TWO),
    "clipseg": of(
        "CLIPSegModel", _pair, text_config=TEXT, vision_config=PICTURE, projection_dim=16
    ),
    "siglip": of("SiglipModel", _pair, text_config=TEXT, vision_config=PICTURE),
    "chinese_clip": of("ChineseCLIPModel", _pair, **{**_TWO, "text_config": BERT}),
    "altclip": of("AltCLIPModel", _pair, **{**_TWO, "text_config": BERT | {"project_dim": 16}}),
    "blip": of("BlipModel", _pair, **{**_TWO, "text_config": BERT}),
    "vilt": of(
        "ViltForQuestionAnswering",
        lambda: words() | {"pixel_values": _picture(), "labels": torch.eye(2, 5)},
        **BERT,
        image_size=32,
        patch_size=8,
        num_labels=5,
    ),
    "vit_mae": of(
        "ViTMAEForPreTraining",
        lambda: {
            "pixel_values": _picture(),
            "noise": torch.rand(2, 16, generator=draw()),
        },
        **PICTURE,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
    ),
    "videomae": of(
        "VideoMAEForVideoClassification",
        _video,
        **PICTURE,
        num_frames=4,
        num_labels=3,
        decoder_hidden_size=32,
    ),
    "vivit": of(
        "VivitForVideoClassification",
        _video,
        **PICTURE | {"patch_size": 8},
        num_frames=4,
        tubelet_size=[2, 8, 8],
        num_labels=3,
    ),
    "timesformer": of(
        "TimesformerForVideoClassification", _video, **PICTURE, num_frames=4, num_labels=3
    ),
    "llava": lambda: build(
        "LlavaForConditionalGeneration",
        next_word() | _with_picture(),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2),
        vision_config=transformers.CLIPVisionConfig(**PICTURE),
        image_token_id=99,
        vision_feature_layer=-1,
    ),
    "vision-encoder-decoder": lambda: _encoder_decoder(),
}
"""Per family a function that returns a small model without dropout, and a batch."""
