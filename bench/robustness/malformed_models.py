"""Malformed ONNX files, made from valid ones by a seed: bytes, structure, data files.

A kind is a function that is given a random generator and a folder and leaves ``model.onnx`` there,
with data files beside it where it needs any. What must not be read lies in ``../outside``.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from bench.robustness import malformed_bytes, malformed_data_files, malformed_structure
from bench.robustness.malformed_parts import KINDS

SECRET = b"what lies outside the model's folder"
__all__ = ["KINDS", "SECRET", "kind_of", "make"]
_SOURCES = (malformed_bytes, malformed_structure, malformed_data_files)  # each registers its kinds


def make(seed: int, index: int, folder: Path) -> str:
    """Make one malformed model in an empty folder of its own; return its kind.

    Args:
        seed: of all of them.
        index: which one; kinds take turns.
        folder: gets ``model/model.onnx`` and ``outside``.
    """
    kind = kind_of(index)
    model = folder / "model"
    model.mkdir(parents=True)
    (folder / "outside").write_bytes(SECRET * 4096)
    KINDS[kind](Random(f"{seed}/{index}"), model)
    return kind


def kind_of(index: int) -> str:
    """Return the kind of a malformed model; those that are costly to run come up less often."""
    turn, place = divmod(index, len(KINDS))
    kind = list(KINDS)[place]
    return "any field" if kind == "costly to run" and turn % 4 else kind
