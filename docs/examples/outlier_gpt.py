"""A small decoder of ``models/gpt.py`` in which one hidden unit of one MLP is 1e5.

Trained language models have such units; FP16 ends at 65504. An example for ``mpcompile tune``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mpcompile import Workload
from mpcompile.program.workload import module_at


def workload() -> Workload:
    """Return the training program."""
    gpt = module_at(Path(__file__).parents[2] / "models" / "gpt.py")
    made: Workload = gpt.workload(config=replace(gpt.SMALL, batch=4), seed=0)
    mlp = made.model.get_submodule("blocks.2.mlp")
    with torch.no_grad():
        mlp.get_parameter("0.bias")[7] = 1e5
        mlp.get_parameter("2.weight")[:, 7] *= 1e-5
    return made
