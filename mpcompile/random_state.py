"""The state of random numbers: to draw once more what has been drawn, or always the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RandomState:
    """The generators of the CPU and of one device.

    Attributes:
        cpu: its state.
        device: index of the CUDA device, or None.
        cuda: the state of that device's generator, or None.
    """

    cpu: torch.Tensor
    device: int | None = None
    cuda: torch.Tensor | None = None


def random_state(device: torch.device) -> RandomState:
    """Return the state now; nothing waits for the device."""
    if device.type != "cuda":
        return RandomState(torch.get_rng_state())
    index = torch.cuda.current_device() if device.index is None else device.index
    return RandomState(torch.get_rng_state(), index, torch.cuda.get_rng_state(index))


@contextmanager
def drawn_again(state: RandomState) -> Iterator[None]:
    """Draw inside what was drawn after a state was taken; leave the generators as they were."""
    devices = [] if state.device is None else [state.device]
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state.cpu)
        if state.device is not None and state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda, state.device)
        yield


def seed_all(seed: int) -> None:
    """Seed the random numbers of torch (on every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
