"""Small nets of every common structure, as workloads to plan, transform and measure."""

from __future__ import annotations

from collections.abc import Callable

from mpcompile import Workload
from nets.gan import discriminator, generator
from nets.images import densenet, inception, resnet_basic, resnet_bottleneck, squeeze_excite, unet
from nets.speech import gru_speech
from nets.tokens import bert, encoder_decoder, mixture_of_experts

NETS: dict[str, Callable[[], Workload]] = {
    "unet": unet,
    "resnet_basic": resnet_basic,
    "resnet_bottleneck": resnet_bottleneck,
    "inception": inception,
    "densenet": densenet,
    "squeeze_excite": squeeze_excite,
    "generator": generator,
    "discriminator": discriminator,
    "encoder_decoder": encoder_decoder,
    "bert": bert,
    "mixture_of_experts": mixture_of_experts,
    "gru_speech": gru_speech,
}
"""Name to the function that makes the workload: always the same weights, always the same batch."""
