"""Sample inputs for the ops of the table: torch's own if it has some, else made here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Sample:
    """A call of an op, and a function of the same name to call if the op needs other types."""

    op: Callable[..., Any]
    public: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.op(*args, **kwargs)
        except (RuntimeError, TypeError, NotImplementedError):
            return self.public(*args, **kwargs)


def samples(name: str, at_most: int) -> list[Sample]:
    """Return some calls of an ATen op in FP32 on the CPU."""
    packet = getattr(_ATEN, name)
    if name in _MADE:
        return [Sample(packet, packet, args, {}) for args in _MADE[name]()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            Sample(packet, info.op, (sample.input, *sample.args), sample.kwargs)
            for info in _infos().get(name, ())
            for sample in islice(_of(info), at_most)
        ]


def _of(info: Any) -> Iterator[Any]:
    try:
        # Not info.sample_inputs: it seeds every device before every sample, which is slow.
        yield from info.sample_inputs_func(info, "cpu", torch.float32, False)
    except (RuntimeError, TypeError, NotImplementedError):
        return


@cache
def _infos() -> dict[str, list[Any]]:
    # The import takes seconds, so only the process that runs these tests does it.
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, list[Any]] = {}
    for info in op_db:
        if torch.float32 not in info.supported_dtypes("cpu"):
            continue
        name = (info.aten_name or info.name).replace(".", "_")
        names = {name, info.name.replace(".", "_"), name.removeprefix("nn_functional_")}
        names |= {alias.name.replace(".", "_") for alias in info.aliases}
        for each in names:
            found.setdefault(each, []).append(info)
    return found


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) if shape else torch.randn(3, 4)


def _classes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 4, shape)


_IMAGE, _VOLUME, _LINE = (2, 3, 6, 6), (2, 3, 4, 4, 4), (2, 3, 6)
_PER_CHANNEL = (_x(3), _x(3), torch.zeros(3), torch.ones(3))


def _cell(gates: int, states: int) -> tuple[Any, ...]:
    state = [_x(2, 4) for _ in range(states)]
    hidden = state if states > 1 else state[0]
    return _x(2, 3), hidden, _x(gates * 4, 3), _x(gates * 4, 4), _x(gates * 4), _x(gates * 4)


def _layer(gates: int, states: int) -> tuple[Any, ...]:
    state = [_x(1, 2, 4) for _ in range(states)]
    hidden = state if states > 1 else state[0]
    weights = [_x(gates * 4, 3), _x(gates * 4, 4), _x(gates * 4), _x(gates * 4)]
    return _x(5, 2, 3), hidden, weights, True, 1, 0.0, True, False, False


def _resize(*shape: int, factor: int = 2) -> tuple[Any, ...]:
    return _x(*shape), [size * factor for size in shape[2:]], False


def _attention() -> tuple[torch.Tensor, ...]:
    return _x(1, 2, 4, 8), _x(1, 2, 4, 8), _x(1, 2, 4, 8)


_MADE: dict[str, Callable[[], list[tuple[Any, ...]]]] = {
    "_adaptive_avg_pool2d": lambda: [(_x(*_IMAGE), [2, 2])],
    "_adaptive_avg_pool3d": lambda: [(_x(*_VOLUME), [2, 2, 2])],
    "_batch_norm_impl_index": lambda: [(_x(*_IMAGE), *_PER_CHANNEL, True, 0.1, 1e-5, False)],
    "_convolution_mode": lambda: [(_x(*_IMAGE), _x(4, 3, 3, 3), None, [1, 1], "same", [1, 1], 1)],
    "_fused_rms_norm": lambda: [(_x(), [4], _x(4), 1e-5)],
    "_log_softmax": lambda: [(_x(), -1, False)],
    "_masked_softmax": lambda: [(_x(), torch.zeros(3, 4, dtype=torch.bool), -1)],
    "_native_batch_norm_legit_functional": lambda: [(_x(*_IMAGE), *_PER_CHANNEL, True, 0.1, 1e-5)],
    "_native_batch_norm_legit_no_training": lambda: [(_x(*_IMAGE), *_PER_CHANNEL, 0.1, 1e-5)],
    "_prelu_kernel": lambda: [(_x(2, 3), torch.full((1, 3), 0.2))],
    "_safe_softmax": lambda: [(_x(), -1)],
    "_scaled_dot_product_flash_attention_for_cpu": lambda: [_attention()],
    "_softmax": lambda: [(_x(), -1, False)],
    "_to_copy": lambda: [(_x(),)],
    "_trilinear": lambda: [(_x(2, 3, 4), _x(2, 3, 4), _x(2, 3, 4), [], [], [], [2])],
    "_unsafe_index": lambda: [(_x(), [torch.tensor([0, 2])])],
    "_unsafe_index_put": lambda: [(_x(), [torch.tensor([0, 2])], _x(2, 4))],
    "_unsafe_view": lambda: [(_x(), [12])],
    "_upsample_bicubic2d_aa": lambda: [_resize(*_IMAGE)],
    "_upsample_bilinear2d_aa": lambda: [_resize(*_IMAGE)],
    "_upsample_nearest_exact1d": lambda: [_resize(*_LINE)[:2]],
    "_upsample_nearest_exact2d": lambda: [_resize(*_IMAGE)[:2]],
    "_upsample_nearest_exact3d": lambda: [_resize(*_VOLUME)[:2]],
    "_weight_norm": lambda: [(_x(), _x(3, 1), 0)],
    "_weight_norm_interface": lambda: [(_x(), _x(3, 1), 0)],
    "affine_grid_generator": lambda: [(_x(2, 2, 3), [2, 3, 4, 4], False)],
    "batch_norm": lambda: [(_x(*_IMAGE), *_PER_CHANNEL, True, 0.1, 1e-5, False)],
    "bernoulli": lambda: [(torch.rand(3, 4),)],
    "chain_matmul": lambda: [([_x(3, 4), _x(4, 5), _x(5, 6)],)],
    "col2im": lambda: [(_x(2, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])],
    "conv_tbc": lambda: [(_x(5, 2, 3), _x(3, 3, 4), _x(4))],
    "convolution": lambda: [
        (_x(*_IMAGE), _x(4, 3, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    ],
    "cross_entropy_loss": lambda: [(_x(), _classes(3)), (_x(), torch.rand(3, 4))],
    "feature_dropout": lambda: [(_x(*_IMAGE), 0.5, True)],
    "frobenius_norm": lambda: [(_x(), [0], False)],
    "grid_sampler": lambda: [(_x(*_IMAGE), _x(2, 4, 4, 2), 0, 0, False)],
    "gru": lambda: [_layer(3, 1)],
    "gru_cell": lambda: [_cell(3, 1)],
    "index": lambda: [(_x(), [torch.tensor([0, 2])])],
    "linalg__powsum": lambda: [(_x(), 2.0)],
    "linalg_matmul": lambda: [(_x(3, 4), _x(4, 5))],
    "log_sigmoid_forward": lambda: [(_x(),)],
    "lstm": lambda: [_layer(4, 2)],
    "lstm_cell": lambda: [_cell(4, 2)],
    "max_pool1d_with_indices": lambda: [(_x(*_LINE), [2])],
    "max_pool2d_with_indices": lambda: [(_x(*_IMAGE), [2, 2])],
    "max_pool3d_with_indices": lambda: [(_x(*_VOLUME), [2, 2, 2])],
    "multilabel_margin_loss_forward": lambda: [(_x(), _classes(3, 4), 1)],
    "native_channel_shuffle": lambda: [(_x(2, 4, 3, 3), 2)],
    "native_dropout": lambda: [(_x(), 0.5, True)],
    "nll_loss2d": lambda: [(_x(2, 4, 3, 3), _classes(2, 3, 3))],
    "nll_loss2d_forward": lambda: [(_x(2, 4, 3, 3), _classes(2, 3, 3), None, 1, -100)],
    "nll_loss_forward": lambda: [(_x(), _classes(3), None, 1, -100)],
    "nll_loss_nd": lambda: [(_x(), _classes(3))],
    "nuclear_norm": lambda: [(_x(),)],
    "reflection_pad1d": lambda: [(_x(*_LINE), [1, 1])],
    "reflection_pad2d": lambda: [(_x(*_IMAGE), [1, 1, 1, 1])],
    "reflection_pad3d": lambda: [(_x(*_VOLUME), [1] * 6)],
    "replication_pad1d": lambda: [(_x(*_LINE), [1, 1])],
    "replication_pad2d": lambda: [(_x(*_IMAGE), [1, 1, 1, 1])],
    "replication_pad3d": lambda: [(_x(*_VOLUME), [1] * 6)],
    "rnn_relu": lambda: [_layer(1, 1)],
    "rnn_relu_cell": lambda: [_cell(1, 1)],
    "rnn_tanh": lambda: [_layer(1, 1)],
    "rnn_tanh_cell": lambda: [_cell(1, 1)],
    "rrelu_with_noise_functional": lambda: [(_x(), _x(), 0.1, 0.3, True)],
    "soft_margin_loss": lambda: [(_x(), torch.ones(3, 4))],
    "upsample_bicubic2d": lambda: [_resize(*_IMAGE)],
    "upsample_bilinear2d": lambda: [_resize(*_IMAGE)],
    "upsample_linear1d": lambda: [_resize(*_LINE)],
    "upsample_nearest1d": lambda: [_resize(*_LINE)[:2]],
    "upsample_nearest2d": lambda: [_resize(*_IMAGE)[:2]],
    "upsample_nearest3d": lambda: [_resize(*_VOLUME)[:2]],
    "upsample_trilinear3d": lambda: [_resize(*_VOLUME)],
    "where": lambda: [(torch.ones(3, 4, dtype=torch.bool), _x(), _x())],
}
