"""The inputs and results of the graphs of a step: slots, each with a role."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from mpcompile.program.graph_text import type_text


class Role(Enum):
    """The purpose of a slot."""

    BATCH = "batch"
    MASTER = "master"
    """An FP32 weight: the parameter itself."""
    WORKING = "working"
    """The 16-bit copy of a master that forward and backward read, or a gathered arena."""
    BUFFER = "buffer"
    CONSTANT = "constant"
    """A parameter that the step only reads."""
    SHARED = "shared"
    """The 16-bit copy of such a parameter, see `mpcompile.train.weight_copies`."""
    OPTIMIZER = "optimizer"
    HYPER = "hyper"
    """A hyper-parameter: a 0-d FP64 tensor the caller sets."""
    NUMBER = "number"
    """A Python number of the program: a 0-d FP64 tensor that the step writes before a call."""
    SCALE = "scale"
    TRACKER = "tracker"
    """Clean steps since the scale last changed."""
    COUNTER = "counter"
    PENDING = "pending"
    """A tensor that an update over several micro-batches keeps between them."""
    REPORT = "report"
    """A report to the caller: written by the update graph and never read."""
    GRADIENT = "gradient"
    """Passed from the gradient graph to the update graph."""
    PACKED = "packed"
    """An arena's gradient in FP32, until `passes.pack_gradients` makes it in the update graph."""
    UPDATED = "updated"
    """A buffer's next value, passed from the gradient graph to the update graph."""
    LOSS = "loss"
    AUXILIARY = "auxiliary"
    """A tensor that the loss function returns beside the loss."""


STATE = (Role.MASTER, Role.WORKING, Role.BUFFER, Role.OPTIMIZER, Role.SCALE, Role.TRACKER,
         Role.COUNTER, Role.PENDING, Role.REPORT)  # fmt: skip
"""Roles whose slots are kept from one step to the next and written by the update graph."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that enters or leaves a graph.

    Attributes:
        name: unique in the step.
        role: its purpose.
        shape: its shape.
        dtype: its dtype.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.role.value:10} {self.name:32} {type_text(self.empty())}"

    def empty(self) -> torch.Tensor:
        """Return a tensor of this shape and dtype that holds no memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")
