"""A check that many dictionaries were not written to, which reads Python's own numbers of writes.

Python 3.11 keeps in each dictionary a number that is another one after each write; torch's own
guards read it, one dictionary a call. Here NumPy reads it for all of them. Later versions of Python
have no such number: then torch watches each dictionary and is asked for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from mpcompile.torch_private.guarding import dict_version
from mpcompile.torch_private.words import WORD, Words, are_words_known, only, read


class WatchedDictionaries:
    """Dictionaries, and whether one of them was written to since `note`.

    Args:
        dictionaries: are kept.
        only_at_once: if their numbers cannot be read at once, `hold` says no; otherwise each is
            asked then.
    """

    def __init__(
        self, dictionaries: Iterable[dict[Any, Any]], *, only_at_once: bool = False
    ) -> None:
        self._watched, place = list(dictionaries), _place()
        self._words: Words | None = None
        self._versions: list[int] | None = None
        if place is not None:
            words = Words([id(each) + WORD * place for each in self._watched], self._watched)
            if words.numbers() == self._now():
                self._words = words
        if self._words is None and not only_at_once:
            self._versions = self._now()

    def hold(self) -> bool:
        """Whether none was written to."""
        if self._words is not None:
            return self._words.hold()
        return self._versions is not None and self._now() == self._versions

    def _now(self) -> list[int]:
        return list(map(dict_version, self._watched))

    def note(self) -> None:
        """Forget the writes until now."""
        if self._words is not None:
            self._words.note()
        elif self._versions is not None:
            self._versions = self._now()


@cache
def _place() -> int | None:
    """Return which word of a dictionary is its number; None: none is."""
    if not are_words_known():
        return None
    tried: dict[str, int] = {"first": 1}
    count = dict.__basicsize__ // WORD
    places = set(range(count))
    for key in ("first", "second", "third"):
        tried[key] = 2
        version = dict_version(tried)
        places &= {k for k, word in enumerate(read(id(tried), count)) if word == version}
    try:
        return only(places)
    except LookupError:
        return None
