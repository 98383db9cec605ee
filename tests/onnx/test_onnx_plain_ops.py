"""Ops written out for ONNX compute the same as torch's own kernels, and sum in FP32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcompile.onnx.plain_ops import PLAIN

ATEN = torch.ops.aten


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def agree(found: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    """Compare tensors, None included, by the size of the largest number."""
    if not isinstance(wanted, tuple | list):
        found, wanted = (found,), (wanted,)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = float(other.abs().max()) if other.numel() else 0.0
        assert torch.allclose(one.double(), other.double(), atol=tolerance * max(largest, 1e-3))


CONVOLUTIONS = {
    "plain": (1, 3, 6, (9, 9), (3, 3), 1, 0, 1, False, 0, 1),
    "1d": (2, 3, 6, (17,), (5,), 3, 2, 2, False, 0, 1),
    "3d": (1, 2, 4, (5, 6, 7), (3, 2, 3), 2, 1, 1, False, 0, 1),
    "strided": (3, 3, 6, (10, 11), (3, 4), 2, 1, 1, False, 0, 1),
    "stride leaves a rest": (2, 3, 4, (12, 12), (3, 3), 4, 0, 1, False, 0, 1),
    "dilated": (2, 4, 6, (11, 12), (3, 3), 1, 2, 2, False, 0, 1),
    "groups": (2, 6, 9, (8, 8), (3, 3), 2, 1, 1, False, 0, 3),
    "depthwise": (2, 6, 12, (8, 8), (3, 3), 1, 1, 1, False, 0, 6),
    "transposed": (2, 4, 6, (5, 6), (3, 3), 2, 1, 1, True, 1, 1),
    "transposed groups": (2, 4, 6, (5, 6), (3, 4), 3, 1, 2, True, 2, 2),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_convolution_backward(case: tuple[Any, ...]) -> None:
    count, channels, outputs, sizes, kernel, stride, pad, dilation, transposed, extra, groups = case
    dims = len(sizes)
    image = rand(count, channels, *sizes)
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    weight = rand(*shape, *kernel)
    options = ([stride] * dims, [pad] * dims, [dilation] * dims, transposed, [extra] * dims, groups)
    result = torch.convolution(image, weight, None, *options)
    upstream = rand(*result.shape)
    arguments = (upstream, image, weight, [outputs], *options, [True, True, True])
    agree(PLAIN["convolution_backward"](*arguments), ATEN.convolution_backward(*arguments), 1e-4)
    some = (*arguments[:-1], [False, True, False])
    agree(PLAIN["convolution_backward"](*some), ATEN.convolution_backward(*some), 1e-4)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_pools(kernel: int, stride: int, padding: int) -> None:
    image = rand(2, 3, 9, 11)
    chosen = ([kernel] * 2, [stride] * 2, [padding] * 2)
    result, indices = ATEN.max_pool2d_with_indices(image, *chosen)
    upstream = rand(*result.shape)
    maximum = (upstream, image, *chosen, [1, 1], False, indices)
    name = "max_pool2d_with_indices_backward"
    agree(PLAIN[name](*maximum), getattr(ATEN, name)(*maximum))
    for include in (True, False):
        for divisor in (None, 5):
            mean = (upstream, image, *chosen, False, include, divisor)
            agree(PLAIN["avg_pool2d_backward"](*mean), ATEN.avg_pool2d_backward(*mean))


def test_an_average_pool_rounded_up() -> None:
    image = rand(1, 2, 8, 8)
    options: tuple[Any, ...] = ([3, 3], [2, 2], [1, 1], True)
    for include in (True, False):
        upstream = rand(*functional.avg_pool2d(image, 3, 2, 1, True, include).shape)
        mean = (upstream, image, *options, include, None)
        agree(PLAIN["avg_pool2d_backward"](*mean), ATEN.avg_pool2d_backward(*mean))


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)])
def test_adaptive_pools(size: tuple[int, int]) -> None:
    image, upstream = rand(2, 3, 7, 9), rand(2, 3, *size)
    name = "_adaptive_avg_pool2d_backward"
    agree(PLAIN[name](upstream, image), getattr(ATEN, name)(upstream, image))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_and_its_backward(training: bool, affine: bool) -> None:
    image = rand(4, 5, 6, 3) * 3 + 1
    weight, bias = (rand(5), rand(6)[:5]) if affine else (None, None)
    mean, variance = rand(5), rand(5).abs() + 0.5
    forward = (image, weight, bias, mean, variance, training, 0.1, 1e-5)
    wanted = ATEN._native_batch_norm_legit_functional(*forward)
    found = PLAIN["_native_batch_norm_legit_functional"](*forward)
    agree(found, wanted)
    backward = (rand(*image.shape).flip(0), image, weight, mean, variance, wanted[1], wanted[2])
    options = (training, 1e-5, [True, affine, affine])
    name = "native_batch_norm_backward"
    agree(PLAIN[name](*backward, *options), ATEN.native_batch_norm_backward(*backward, *options))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_and_its_backward(causal: bool, scale: float | None, masked: bool) -> None:
    if causal and masked:
        pytest.skip("attention takes one of them")
    query, key, value = rand(2, 3, 6, 8), rand(2, 3, 7, 8), rand(2, 3, 7, 9)[..., :8]
    if causal:
        key, value = rand(2, 3, 6, 8) * 2, rand(2, 3, 6, 8) + 1
    mask = rand(6, 7) if masked else None
    options = {"attn_mask": mask, "scale": scale}
    name = "_scaled_dot_product_flash_attention_for_cpu"
    wanted = getattr(ATEN, name)(query, key, value, 0.0, causal, **options)
    agree(PLAIN[name](query, key, value, 0.0, causal, **options), tuple(wanted))
    given = (rand(*query.shape), query, key, value, *wanted, 0.0, causal)
    name += "_backward"
    agree(PLAIN[name](*given, **options), tuple(getattr(ATEN, name)(*given, **options)))


@pytest.mark.parametrize("padding", [-1, 2])
def test_embedding_backward(padding: int) -> None:
    upstream, indices = rand(4, 6, 8), torch.randint(0, 5, (4, 6))
    arguments = (upstream, indices, 5, padding, False)
    name = "embedding_dense_backward"
    agree(PLAIN[name](*arguments), ATEN.embedding_dense_backward(*arguments))


def test_softmax_backward() -> None:
    upstream, value = rand(3, 7), rand(3, 8)[:, :7]
    for name, result in (
        ("_softmax_backward_data", value.softmax(-1)),
        ("_log_softmax_backward_data", value.log_softmax(-1)),
    ):
        arguments = (upstream, result, -1, torch.float32)
        agree(PLAIN[name](*arguments), getattr(ATEN, name)(*arguments))


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("weighted", [True, False])
def test_negative_log_likelihood(reduction: int, weighted: bool) -> None:
    scores, target = rand(6, 5).log_softmax(1), torch.tensor([0, 4, -100, 2, 2, 1])
    weight = rand(5).abs() + 0.1 if weighted else None
    arguments = (scores, target, weight, reduction, -100)
    wanted = ATEN.nll_loss_forward(*arguments)
    found = PLAIN["nll_loss_forward"](*arguments)
    agree(found[0], wanted[0])
    if reduction:
        agree(found[1], wanted[1])


def test_a_largest_magnitude_and_other_norms() -> None:
    value = rand(40)
    norm = PLAIN["linalg_vector_norm"]
    agree(norm(value, float("inf")), ATEN.linalg_vector_norm(value, float("inf")))
    agree(norm(value, 2), ATEN.linalg_vector_norm(value, 2))


def test_numbers_that_16_bits_would_lose_are_added_in_fp32() -> None:
    """Adding 3,000 ones in FP16 stops at 2,048."""
    ones, rows = torch.ones(3000, 4).half(), torch.zeros(3000, dtype=torch.int64)
    found = PLAIN["embedding_dense_backward"](ones, rows, 2, -1, False)
    assert found.dtype is torch.float16
    assert found[0, 0] == 3000
    image = torch.ones(3000, 1, 1, 1).half()
    _, _, bias = PLAIN["convolution_backward"](
        image,
        image,
        torch.ones(1, 1, 1, 1).half(),
        [1],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [False, False, True],
    )
    assert bias.dtype is torch.float16
    assert bias[0] == 3000


def derivative(name: str, *arguments: Any) -> tuple[Any, Any]:
    """Return what our form and torch's own kernel of an op compute."""
    (overload, *_) = getattr(ATEN, name).overloads()
    return PLAIN[name](*arguments), getattr(getattr(ATEN, name), overload)(*arguments)


SIZES = {"twice": (4, 8), "odd": (5, 7), "smaller": (9, 4), "equal": (6, 6), "from one": (1, 3)}
RESIZED = [
    *((f"upsample_nearest{dims}d", (), dims) for dims in (1, 2, 3)),
    *((f"_upsample_nearest_exact{dims}d", (), dims) for dims in (1, 2, 3)),
    *(
        (name, (aligned,), dims)
        for aligned in (False, True)
        for name, dims in {
            "upsample_linear1d": 1,
            "upsample_bilinear2d": 2,
            "upsample_trilinear3d": 3,
            "upsample_bicubic2d": 2,
        }.items()
    ),
]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize(("name", "flags", "dims"), RESIZED)
def test_resizes(name: str, flags: tuple[bool, ...], dims: int, sizes: tuple[int, int]) -> None:
    old, new = sizes
    before, after = (old, old + 1, old + 2)[:dims], (new, new + 2, new + 1)[:dims]
    upstream = rand(2, 3, *after)
    arguments = (upstream, after, (2, 3, *before), *flags, *[None] * dims)
    agree(*derivative(f"{name}_backward", *arguments))


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_largest_numbers_of_images_and_volumes(dims: int, adaptive: bool) -> None:
    image = rand(2, 3, *(6, 7, 8)[:dims])
    name = f"adaptive_max_pool{dims}d" if adaptive else f"max_pool{dims}d_with_indices"
    arguments = [[3] * dims] if adaptive else [[3] * dims, [2] * dims, [1] * dims]
    pooled, indices = getattr(ATEN, name)(image, *arguments)
    between = [] if adaptive else [*arguments, [1] * dims, False]
    agree(*derivative(f"{name}_backward", rand(*pooled.shape), image, *between, indices))


@pytest.mark.parametrize("size", [(2, 3), (4, 5), (3, 7), (6, 1), (6, 7)])
def test_largest_numbers_of_windows_of_any_size(size: tuple[int, int]) -> None:
    agree(*derivative("adaptive_max_pool2d", rand(2, 3, 6, 7), size))
    agree(*derivative("adaptive_max_pool2d", torch.ones(1, 6, 7), size))


@pytest.mark.parametrize("scale", [2.0, 1.7, 0.6])
@pytest.mark.parametrize(("kind", "flags"), [("nearest", ()), ("bilinear", (False,))])
def test_a_resize_by_a_factor(kind: str, flags: tuple[bool, ...], scale: float) -> None:
    old, new = (7, 9), (int(7 * scale), int(9 * scale))
    arguments = (rand(2, 3, *new), new, (2, 3, *old), *flags, scale, scale)
    agree(*derivative(f"upsample_{kind}2d_backward", *arguments))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_borders_that_are_repeated(dims: int) -> None:
    image, padding = rand(2, 3, *(4, 5, 6)[:dims]), (1, 2, 3, 0, 2, 1)[: 2 * dims]
    padded = functional.pad(image, padding, mode="replicate")
    agree(*derivative(f"replication_pad{dims}d_backward", rand(*padded.shape), image, padding))


@pytest.mark.parametrize(
    ("offset", "dims"), [(0, (0, 1)), (2, (1, 2)), (-1, (2, 0)), (1, (-1, -2))]
)
def test_a_diagonal(offset: int, dims: tuple[int, int]) -> None:
    upstream = rand(*torch.diagonal(rand(3, 4, 5), offset, *dims).shape)
    agree(*derivative("diagonal_backward", upstream, (3, 4, 5), offset, *dims))


@pytest.mark.parametrize(("dim", "size", "step"), [(1, 3, 1), (0, 2, 2), (-1, 4, 3), (1, 4, 5)])
def test_windows(dim: int, size: int, step: int) -> None:
    upstream = rand(*rand(4, 5, 7).unfold(dim, size, step).shape)
    agree(*derivative("unfold_backward", upstream, (4, 5, 7), dim, size, step))


@pytest.mark.parametrize("name", ["softshrink_backward", "hardshrink_backward"])
def test_shrinks(name: str) -> None:
    agree(*derivative(name, rand(5, 6), torch.tensor([0.5, -0.5, 0.4, -0.6, 0.0, 2.0]), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_products(dtype: torch.dtype) -> None:
    value = (3 * rand(3, 7)).to(dtype)
    agree(PLAIN["prod"](value), value.prod())
    for dim in (0, 1, -1):
        agree(PLAIN["prod"](value, dim), value.prod(dim))
        agree(PLAIN["prod"](value, dim, True), value.prod(dim, True))
        agree(PLAIN["cumprod"](value, dim), value.cumprod(dim))
    agree(PLAIN["prod"](value, dtype=torch.float64), value.prod(dtype=torch.float64))


def test_what_is_added_at_places_is_added_in_fp32() -> None:
    value, places = torch.zeros(3, dtype=torch.float16), torch.zeros(4096, dtype=torch.int32)
    ones = torch.ones(4096, dtype=torch.float16)
    assert PLAIN["index_put"](value, [places], ones, True).tolist() == [4096.0, 0.0, 0.0]
    assert PLAIN["index_put"](value, [places[:1]], ones[:1]).tolist() == [1.0, 0.0, 0.0]


def test_a_whole_net_has_the_gradients_of_autograd() -> None:
    """All parts together: a graph of them computes the same as autograd."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    image = rand(3, 2, 9, 9).requires_grad_()
    result = net(image)
    upstream = rand(*result.shape)
    wanted = torch.autograd.grad(result, image, upstream)[0]
    first = net[0](image)
    pooled = (upstream.reshape(3, 4, 2, 2), first.relu(), [2, 2], [2, 2], [0, 0], False, True, None)
    before = PLAIN["avg_pool2d_backward"](*pooled) * (first > 0)
    plain = [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
    found = PLAIN["convolution_backward"](before, image, net[0].weight, [4], *plain)[0]
    agree(found, wanted)
