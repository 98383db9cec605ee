"""Backward of convolutions and pools, and batch norm in training, in ops that ONNX has.

Every function has the arguments and results of the ATen op of its name. Sums and statistics are
FP32 in every storage format (paper 3.3). Convolutions keep 16-bit operands; a Tensor Core adds up
their products in FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Ints = Sequence[int]


def convolution_backward(
    gradient: Tensor,
    image: Tensor,
    weight: Tensor,
    bias_sizes: Ints | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of image, weight and bias; convolutions compute the first two.

    Image ``[N, C, *sizes]``, weight ``[O, C/groups, *kernel]`` (transposed: ``[C, O/groups,
    *kernel]``).
    """
    del bias_sizes, output_padding  # the other shapes determine them
    stride, padding, dilation = (
        _repeated(each, image.dim() - 2) for each in (stride, padding, dilation)
    )
    of_image = of_weight = of_bias = None
    if mask[0]:
        if transposed:
            of_image = torch.convolution(
                gradient, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
            )
        else:
            reached = [
                (size - 1) * s - 2 * p + d * (k - 1) + 1
                for size, s, p, d, k in zip(
                    gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
                )
            ]
            left = [size - got for size, got in zip(image.shape[2:], reached, strict=True)]
            of_image = torch.convolution(
                gradient, weight, None, stride, padding, dilation, True, left, groups
            )
    if mask[1]:
        small, large = (gradient, image) if not transposed else (image, gradient)
        of_weight = _weight_gradient(
            large, small, weight.shape[2:], stride, padding, dilation, groups
        )
    if mask[2]:
        dims = [0, *range(2, gradient.dim())]
        of_bias = gradient.float().sum(dims).to(gradient.dtype)
    return of_image, of_weight, of_bias


def _weight_gradient(
    large: Tensor,
    small: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """Return a convolution's weight gradient; stride and dilation swap roles.

    Large ``[N, C, *sizes]``, small ``[N, O, *sizes]``; the result is ``[O, C/groups, *kernel]``.
    """
    count, channels = large.shape[:2]
    # The sum runs over the batch, so the batch becomes the channels, and the channels the batch.
    image = large.reshape(count, groups, channels // groups, *large.shape[2:])
    image = image.permute(2, 1, 0, *range(3, image.dim()))
    image = image.reshape(channels // groups, groups * count, *large.shape[2:])
    filters = small.transpose(0, 1).contiguous()
    image, none = image.contiguous(), [0] * len(stride)
    found = torch.convolution(image, filters, None, dilation, padding, stride, False, none, groups)
    for dim, size in enumerate(kernel, start=2):
        found = found.narrow(dim, 0, size)  # with a stride, the result can exceed the kernel
    return found.transpose(0, 1).contiguous()


def _repeated(numbers: Ints, count: int) -> list[int]:
    return list(numbers) * count if len(numbers) == 1 else list(numbers)


def adaptive_max_pool2d(image: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    """Return the largest number of each window, and its position in the flattened image.

    Windows of different sizes are read as large as the largest; the last row and column of a
    smaller one are read again, and the first position of its largest number counts.
    """
    high, wide = image.shape[-2:]
    rows, row_ends = _windows(high, output_size[0], image.device)
    columns, column_ends = _windows(wide, output_size[1], image.device)
    read = image.index_select(-2, rows.flatten()).index_select(-1, columns.flatten())
    parts = (*image.shape[:-2], *rows.shape, *columns.shape)
    windows = read.reshape(parts).transpose(-3, -2).flatten(-2)
    values, places = windows.max(-1)
    width = columns.shape[1]
    row = torch.minimum(rows[:, :1] + places // width, row_ends.unsqueeze(-1))
    column = torch.minimum(columns[:, 0] + places % width, column_ends)
    return values, row * wide + column


def _windows(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the positions ``[count, largest]`` that windows read, and the last one of each."""
    windows = torch.arange(count, device=device)
    first, last = windows * size // count, ((windows + 1) * size - 1) // count
    largest = max(-(-(k + 1) * size // count) - k * size // count for k in range(count))
    steps = torch.arange(largest, device=device)
    return torch.minimum(first.unsqueeze(-1) + steps, last.unsqueeze(-1)), last


def max_pool_backward(gradient: Tensor, image: Tensor, *rest: object, dims: int = 2) -> Tensor:
    """Add each gradient to the position that its maximum came from, in FP32.

    Args:
        gradient: of the pooled image.
        image: ``[..., *sizes]``.
        rest: the last one holds the positions among the flattened sizes.
        dims: how many sizes an image has.
    """
    indices = rest[-1]
    assert isinstance(indices, Tensor)
    rows = image.shape[:-dims]
    flat = torch.zeros(*rows, prod(image.shape[-dims:]), device=image.device)
    added = flat.scatter_add(-1, indices.flatten(-dims), gradient.float().flatten(-dims))
    return added.reshape(image.shape).to(gradient.dtype)


def avg_pool2d_backward(
    gradient: Tensor,
    image: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Spread each mean's gradient over its window, by two products with small matrices.

    Pooling is linear in rows and in columns; the matrices hold its coefficients.
    """
    del ceil_mode  # the gradient's shape determines the number of windows
    kernel, padding = _repeated(kernel_size, 2), _repeated(padding, 2)
    step = _repeated(stride, 2) if stride else kernel
    spread = gradient.float()
    for dim in (0, 1):
        size, count = image.shape[dim - 2], gradient.shape[dim - 2]
        windows = []
        for k in range(count):
            start = k * step[dim] - padding[dim]
            end = min(start + kernel[dim], size + padding[dim])
            inside = range(max(start, 0), min(end, size))
            divisor = end - start if count_include_pad else len(inside)
            windows.append((inside, 1.0 / (1 if divisor_override else divisor)))
        matrix = _coefficients(windows, size, gradient.device)
        spread = matrix.t() @ spread if dim == 0 else spread @ matrix
    return (spread / (divisor_override or 1)).to(gradient.dtype)


def adaptive_avg_pool2d_backward(gradient: Tensor, image: Tensor) -> Tensor:
    """Spread each mean's gradient over its window, as `avg_pool2d_backward` does."""
    spread = gradient.float()
    for dim in (-2, -1):
        size, count = image.shape[dim], gradient.shape[dim]
        inside = [range(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]
        matrix = _coefficients([(each, 1.0 / len(each)) for each in inside], size, gradient.device)
        spread = matrix.t() @ spread if dim == -2 else spread @ matrix
    return spread.to(gradient.dtype)


def _coefficients(
    windows: Sequence[tuple[range, float]], size: int, device: torch.device
) -> Tensor:
    """Return a matrix ``[windows, size]`` with each window's coefficient at its positions."""
    positions = torch.arange(size, device=device)
    rows = [
        ((positions >= inside.start) & (positions < inside.stop)).float() * factor
        for inside, factor in windows
    ]
    return torch.stack(rows)


def batch_norm(
    image: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Normalise over all dimensions but the channels of ``[N, C, *sizes]``.

    In training the batch's own statistics are used. Returns the image in its dtype, then mean and
    inverse deviation of the batch and the next running statistics in FP32. An exporter would lower
    the op for evaluation.
    """
    dims = [0, *range(2, image.dim())]
    shape = [1, -1, *[1] * (image.dim() - 2)]
    wide = image.float()
    if training:
        count = image.numel() // image.shape[1]
        batch_mean = wide.mean(dims)
        centred = wide - batch_mean.reshape(shape)
        spread = (centred * centred).mean(dims)
        inverse = torch.rsqrt(spread + eps)
        unbiased = spread * (count / max(count - 1, 1))
        next_mean = mean * (1 - momentum) + batch_mean * momentum
        next_variance = variance * (1 - momentum) + unbiased * momentum
        kept = (batch_mean, inverse)
    else:
        centred = wide - mean.reshape(shape)
        inverse = torch.rsqrt(variance + eps)
        next_mean, next_variance = mean, variance
        kept = (image.new_zeros(0, dtype=torch.float32), image.new_zeros(0, dtype=torch.float32))
    result = centred * inverse.reshape(shape)
    if weight is not None:
        result = result * weight.float().reshape(shape)
    if bias is not None:
        result = result + bias.float().reshape(shape)
    return result.to(image.dtype), *kept, next_mean, next_variance


def batch_norm_backward(
    gradient: Tensor,
    image: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    batch_mean: Tensor | None,
    inverse: Tensor | None,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of image, weight and bias."""
    dims = [0, *range(2, image.dim())]
    shape = [1, -1, *[1] * (image.dim() - 2)]
    wide, upstream = image.float(), gradient.float()
    if not training:
        assert mean is not None
        assert variance is not None
        batch_mean, inverse = mean, torch.rsqrt(variance + eps)
    assert batch_mean is not None
    assert inverse is not None
    normal = (wide - batch_mean.reshape(shape)) * inverse.reshape(shape)
    of_bias = upstream.sum(dims)
    of_weight = (upstream * normal).sum(dims)
    factor = inverse if weight is None else inverse * weight.float()
    of_image = upstream
    if training:
        count = image.numel() // image.shape[1]
        of_image = (
            upstream
            - (of_bias / count).reshape(shape)
            - normal * (of_weight / count).reshape(shape)
        )
    of_image = (of_image * factor.reshape(shape)).to(gradient.dtype)
    found = (of_image, of_weight, of_bias)
    return tuple(v if wanted else None for v, wanted in zip(found, mask, strict=True))  # type: ignore[return-value]
