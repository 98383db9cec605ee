"""Thirty programs with derivatives of their own, as libraries write them.

Each entry is a function that returns a model and a loss of ``loss(model, x, y)``, for ``x`` and
``y`` of shape [6, 8].
"""

from programs.functions import in_layers, on_tensors
from programs.functions.program import FUNCTIONS

__all__ = ["FUNCTIONS", "in_layers", "on_tensors"]
