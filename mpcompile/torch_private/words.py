"""Words of memory at many addresses, read by one function of C.

The readers of this module know which objects the words belong to, and that these are alive.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Iterable, Sequence

import numpy as np

WORD = 8
"""Bytes of a word."""


def are_words_known() -> bool:
    """Whether ``id`` is an address here, and a word has 8 bytes with the lowest first.

    Without the lock of the interpreter another thread could free an object between two reads.
    """
    known = sys.implementation.name == "cpython" and sys.maxsize == 2**63 - 1
    locked = not sysconfig.get_config_var("Py_GIL_DISABLED")
    return known and locked and sys.byteorder == "little"


class _Memory:
    """All words from an address on, as an array of NumPy; nothing is read before it is asked for.

    Args:
        first: the address of the first word.
        last: the address of the last one.
    """

    def __init__(self, first: int, last: int) -> None:
        shape = ((last - first) // WORD + 1,)
        self.__array_interface__ = {
            "data": (first, True), "shape": shape, "typestr": "<u8", "version": 3,
        }  # fmt: skip


class Words:
    """Words at some addresses, and what they were when this was made.

    Args:
        addresses: of the words.
        owners: objects that are kept alive.
    """

    def __init__(self, addresses: Sequence[int], owners: Sequence[object] = ()) -> None:
        self._owners = owners
        first, last = min(addresses, default=0), max(addresses, default=0)
        memory = np.asarray(_Memory(first, last)) if addresses else np.zeros(1, np.uint64)
        self._take = memory.take
        self._places = np.array([(one - first) // WORD for one in addresses], np.intp)
        self.note()

    def note(self) -> None:
        """Compare with the words of now from now on."""
        self.before = self.now()

    def now(self) -> bytes:
        """Return what the words are."""
        return self._take(self._places).tobytes()

    def hold(self) -> bool:
        """Whether the words are as before."""
        return self._take(self._places).tobytes() == self.before

    def numbers(self) -> list[int]:
        """Return the words of before as numbers."""
        found: list[int] = np.frombuffer(self.before, np.uint64).tolist()
        return found


def read(address: int, count: int) -> list[int]:
    """Return so many words from an address on."""
    return list((ctypes.c_uint64 * count).from_address(address))


def only(found: Iterable[int]) -> int:
    """Return the only element.

    Raises:
        LookupError: there is none, or several.
    """
    several = list(found)
    if len(several) != 1:
        raise LookupError
    return several[0]
