"""The versions of torch that this package was tried on; only this module names them.

Private parts of torch change between versions. A version outside the range may work; its user is
warned once, before it is used.
"""

from __future__ import annotations

import re

import torch

from mpcompile.errors import UntriedTorch, warn

TRIED = ("2.11.0", "2.13.0", "2.14.1", "2.15.0")
"""All tests were run on these, oldest first; ``docs/versions.md`` shows the results."""

_warned = False


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version: ``(2, 14)`` of ``2.14.0a0+git1234``."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def is_tried(version: str) -> bool:
    """Whether a version is in the range that was tried; its last number does not count."""
    return release(TRIED[0]) <= release(version) <= release(TRIED[-1])


def range_tried() -> str:
    """Return the range as text: ``2.11 to 2.15``."""
    return " to ".join(".".join(map(str, release(version))) for version in (TRIED[0], TRIED[-1]))


def warn_if_untried() -> None:
    """Issue an `UntriedTorch` if this torch is outside the range, once per process."""
    global _warned
    if _warned or is_tried(torch.__version__):
        return
    _warned = True
    warn(
        f"mpcompile was tried on torch {range_tried()}, but this is torch {torch.__version__}: "
        "if something fails or differs, install a version of that range",
        UntriedTorch,
    )
