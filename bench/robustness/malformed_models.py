"""Malformed ONNX files, made from valid ones by a seed: bytes, structure, data files.

A kind is a function of a random generator and a folder. It writes ``model.onnx`` into the folder,
with the data files that it needs. Files that must not be read are in ``../outside``.
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
        seed: the seed of all models.
        index: the number of this model; kinds take turns.
        folder: the folder for ``model/model.onnx`` and ``outside``.
    """
    kind = kind_of(index)
    model = folder / "model"
    model.mkdir(parents=True)
    (folder / "outside").write_bytes(SECRET * 4096)
    KINDS[kind](Random(f"{seed}/{index}"), model)
    return kind


def kind_of(index: int) -> str:
    """Return the kind of a malformed model; kinds that are costly to run are less frequent."""
    turn, place = divmod(index, len(KINDS))
    kind = list(KINDS)[place]
    return "any field" if kind == "costly to run" and turn % 4 else kind
