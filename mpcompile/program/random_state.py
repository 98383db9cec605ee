"""The state of random generators, to draw the same numbers again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpcompile.errors import BadInput

_WORDS = 624


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
    """Return the current state without waiting for the device."""
    if device.type != "cuda":
        return RandomState(torch.get_rng_state())
    index = torch.cuda.current_device() if device.index is None else device.index
    return RandomState(torch.get_rng_state(), index, torch.cuda.get_rng_state(index))


def set_random_state(state: RandomState) -> None:
    """Draw the numbers that followed a state."""
    torch.set_rng_state(state.cpu)
    if state.device is not None and state.cuda is not None:
        torch.cuda.set_rng_state(state.cuda, state.device)


@contextmanager
def drawn_again(state: RandomState) -> Iterator[None]:
    """Draw again the numbers that followed a state; restore the generators afterwards."""
    devices = [] if state.device is None else [state.device]
    with torch.random.fork_rng(devices=devices):
        set_random_state(state)
        yield


def seed_all(seed: int) -> None:
    """Seed the random numbers of torch (on every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def every_state(device: torch.device) -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's global generators, to be saved.

    Args:
        device: whose generator is saved beside the CPU's.

    Raises:
        BadInput: NumPy's global generator was replaced and is not a Mersenne Twister.
    """
    now = random_state(device)
    numpy = np.random.get_state(legacy=False)
    if numpy["bit_generator"] != "MT19937":
        raise BadInput(
            f"NumPy's global generator is {numpy['bit_generator']}, which a checkpoint cannot hold",
            fix="do not replace NumPy's global generator; draw from a generator of your own",
        )
    _, words, gauss = random.getstate()
    return {
        "torch": now.cpu,
        "cuda": now.cuda,
        "numpy": {
            "words": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": {
            "words": torch.tensor(words[:_WORDS]),
            "position": words[_WORDS],
            "gauss": gauss,
        },
    }


def set_every_state(state: Any, device: torch.device) -> None:
    """Set all generators, so that they draw again the numbers that followed `every_state`.

    Args:
        state: the result of `every_state`; may come from an untrusted source.
        device: whose generator is set beside the CPU's, if both runs have one.

    Raises:
        BadInput: it is no such state; some generators may already be set.
    """
    try:
        numpy, python = state["numpy"], state["python"]
        words = [_words_of(generator) for generator in (numpy, python)]
        key = np.array(words[0], dtype=np.uint32)
        gauss = int(numpy["has_gauss"]), float(numpy["gauss"])
        np.random.set_state(("MT19937", key, numpy["position"], *gauss))
        random.setstate((3, (*words[1], python["position"]), python["gauss"]))
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        what = (
            "the state of the random generators is not valid "
            f"({' '.join(str(error).split())[:200]})"
        )
        raise BadInput(what, fix="load another checkpoint") from error


def _words_of(generator: Any) -> list[int]:
    """Return the words of a Mersenne Twister; check that its numbers are in their ranges."""
    words = generator["words"].tolist()
    position = generator["position"]
    if len(words) != _WORDS or not all(0 <= word < 1 << 32 for word in words):
        raise ValueError(f"a Mersenne Twister has {_WORDS} words of 32 bits")
    if not isinstance(position, int) or not 0 <= position <= _WORDS:
        raise ValueError(f"the position of a Mersenne Twister is not {position!r}")
    if generator["gauss"] is not None and not math.isfinite(generator["gauss"]):
        raise ValueError("a number drawn from a normal distribution is finite")
    return words  # type: ignore[no-any-return]
