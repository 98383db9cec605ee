"""Backward of resized, padded and cut images in ops that ONNX has.

Every function has the arguments and results of the ATen op of its name. A resize is linear, and the
same along each axis for all rows. So its backward is one product with a constant matrix for each
axis; for nearest neighbours and a whole factor it is a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Ints = Sequence[int]
_CUBIC = -0.75
"""The parameter of torch's cubic kernel."""


def resize_backward(kind: str) -> Callable[..., Tensor]:
    """Return the backward of a resize.

    Args:
        kind: ``nearest``, ``exact``, ``linear`` or ``cubic``.
    """
    if kind in ("nearest", "exact"):

        def of_nearest(
            gradient: Tensor, output_size: Ints, input_size: Ints, *scales: float | None
        ) -> Tensor:
            return _resized_back(kind, gradient, output_size, input_size, False, scales)

        return of_nearest

    def of_weighted(
        gradient: Tensor,
        output_size: Ints,
        input_size: Ints,
        align_corners: bool,
        *scales: float | None,
    ) -> Tensor:
        return _resized_back(kind, gradient, output_size, input_size, align_corners, scales)

    return of_weighted


def _resized_back(
    kind: str,
    gradient: Tensor,
    output_size: Ints,
    input_size: Ints,
    align_corners: bool,
    scales: Sequence[float | None],
) -> Tensor:
    """Return the gradient ``[N, C, *sizes]`` of an image, from that of the resized one, in FP32."""
    found = gradient.float()
    for axis, new in enumerate(output_size):
        old, place = input_size[2 + axis], 2 + axis
        given = scales[axis] if axis < len(scales) else None
        step = 1.0 / given if given else old / new
        if align_corners:
            step = (old - 1) / (new - 1) if new > 1 else 0.0
        if kind in ("nearest", "exact") and new % old == 0 and step == old / new:
            parts = (*found.shape[:place], old, new // old, *found.shape[place + 1 :])
            found = found.reshape(parts).sum(place + 1)
            continue
        matrix = _matrix(kind, old, new, step, align_corners, gradient.device)
        found = (found.movedim(place, -1) @ matrix).movedim(-1, place)
    return found.to(gradient.dtype)


def _matrix(
    kind: str, old: int, new: int, step: float, align_corners: bool, device: torch.device
) -> Tensor:
    """Return ``[new, old]`` in FP32: how much each new number has of each old one."""
    columns = torch.arange(old, device=device)
    places = torch.arange(new, device=device, dtype=torch.float32)

    def has(index: Tensor) -> Tensor:
        return (index.long().clamp(0, old - 1).unsqueeze(-1) == columns).float()

    if kind == "nearest":
        return has(torch.floor(places * step))
    if kind == "exact":
        return has(torch.floor((places + 0.5) * step))
    source = places * step if align_corners else (places + 0.5) * step - 0.5
    if kind == "linear":
        source = source.clamp(min=0.0)
    first = torch.floor(source)
    rest = source - first
    if kind == "linear":
        shares = {0: 1 - rest, 1: rest}
    else:
        shares = {k: _cubic((rest - k).abs()) for k in (-1, 0, 1, 2)}
    matrix = torch.zeros(new, old, device=device)
    for k, share in shares.items():
        matrix = matrix + share.unsqueeze(-1) * has(first + k)
    return matrix


def _cubic(distance: Tensor) -> Tensor:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance - 4
    return torch.where(distance <= 1, near, _CUBIC * far)


def diagonal_backward(
    gradient: Tensor, input_sizes: Ints, offset: int, dim1: int, dim2: int
) -> Tensor:
    """Return a tensor of zeros with a gradient on a diagonal of two of its dimensions."""
    rank = len(input_sizes)
    dim1, dim2 = dim1 % rank, dim2 % rank
    height, width = input_sizes[dim1], input_sizes[dim2]
    above = max(-offset, 0)
    count = gradient.shape[-1]
    rows = torch.nn.functional.pad(gradient, (above, height - count - above)).unsqueeze(-1)
    columns = torch.arange(width, device=gradient.device)
    on = columns - torch.arange(height, device=gradient.device).unsqueeze(-1) == offset
    return torch.where(on, rows, 0.0).movedim((-2, -1), (dim1, dim2))


def replication_pad_backward(gradient: Tensor, image: Tensor, padding: Ints) -> Tensor:
    """Return the gradient of an image whose borders were repeated; a border adds up its copies."""
    found = gradient.float()
    for axis in range(len(padding) // 2):
        dim = -1 - axis
        before, after = padding[2 * axis], padding[2 * axis + 1]
        size = image.shape[dim]
        place = torch.arange(size, device=gradient.device)
        source = torch.arange(-before, size + after, device=gradient.device).clamp(0, size - 1)
        matrix = (source.unsqueeze(-1) == place).float()
        found = (found.movedim(dim, -1) @ matrix).movedim(-1, dim)
    return found.to(gradient.dtype)


def unfold_backward(gradient: Tensor, input_sizes: Ints, dim: int, size: int, step: int) -> Tensor:
    """Return the gradient of a tensor cut into windows; what is in several adds up, in FP32."""
    rank, device = len(input_sizes), gradient.device
    dim %= rank
    starts = step * torch.arange(gradient.shape[dim], device=device)
    places = (starts.unsqueeze(-1) + torch.arange(size, device=device)).reshape(-1, 1)
    matrix = (places == torch.arange(input_sizes[dim], device=device)).float()
    windows = gradient.float().movedim(dim, -2)
    return (windows.flatten(-2) @ matrix).movedim(-1, dim).to(gradient.dtype)


_KINDS = {
    "upsample_nearest{}d": ("nearest", (1, 2, 3)),
    "_upsample_nearest_exact{}d": ("exact", (1, 2, 3)),
    "upsample_linear{}d": ("linear", (1,)),
    "upsample_bilinear{}d": ("linear", (2,)),
    "upsample_trilinear{}d": ("linear", (3,)),
    "upsample_bicubic{}d": ("cubic", (2,)),
}
RESIZING: dict[str, Callable[..., Any]] = {
    **{
        f"{name.format(count)}_backward": resize_backward(kind)
        for name, (kind, dims) in _KINDS.items()
        for count in dims
    },
    **{f"replication_pad{count}d_backward": replication_pad_backward for count in (1, 2, 3)},
    "diagonal_backward": diagonal_backward,
    "unfold_backward": unfold_backward,
}
"""For each ATen op by name, the function that replaces it."""
