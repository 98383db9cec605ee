"""The options of a model in the environment: ``SIZE``, ``SEED`` and ``DEVICE``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import torch

Config = TypeVar("Config")


def chosen(
    sizes: Mapping[str, Config], config: Config | None, seed: int | None
) -> tuple[Config, int, torch.device]:
    """Return configuration, seed and device; values not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size = os.environ.get("SIZE", "small")
    if config is None and size not in sizes:
        *others, last = map(repr, sizes)
        raise ValueError(f"SIZE is {size!r}; it can be {', '.join(others)} or {last}")
    seed = int(os.environ.get("SEED", "0")) if seed is None else seed
    return config or sizes[size], seed, torch.device(os.environ.get("DEVICE", "cpu"))
