"""Programs that compute gradients inside their loss: found here, recorded by `mpcompile.step`.

`torch.export` traces above autograd, so ``torch.autograd.grad`` finds no graph to go back through,
and it does not know torch's function transforms (``torch.func.grad``, ``vmap``, ``jacrev``). Such a
program is run once on tensors without values, with gradients on. What reaches the dispatcher below
autograd is its graph, with the ops of the inner backward passes among the others. That graph is
exported in place of the program, planned, and differentiated again like any other.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CannotCapture
from mpcompile.torch_private.tracing import keep_node_meta, unflatten, vmap_is_in

_TORCH = Path(torch.__file__).parent
_TRANSFORMS = frozenset(
    str(_TORCH / path)
    for path in (
        "autograd/__init__.py",
        "autograd/functional.py",
        "_functorch/eager_transforms.py",
        "_functorch/vmap.py",
        "_functorch/pyfunctorch.py",
    )
)


class ComputesGradients(CannotCapture):
    """The program computes gradients inside its loss, which `torch.export` cannot trace."""

    def __init__(self, where: str | None = None) -> None:
        super().__init__("the program computes gradients inside its loss", where)


def in_a_transform(error: BaseException) -> bool:
    """Whether an export failed inside a gradient or a function transform of the program."""
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.walk_tb(seen.__traceback__)
        if isinstance(seen, ComputesGradients):
            return True
        if any(frame.f_code.co_filename in _TRANSFORMS for frame, _ in frames):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_transformed(program: torch.export.ExportedProgram) -> bool:
    """Whether an exported graph holds parts of ``torch.func.vmap``, which run in no graph."""
    return any(map(vmap_is_in, program.graph.nodes))


@dataclass(frozen=True)
class RecordedProgram:
    """A program as one graph below autograd.

    Attributes:
        module: takes the weights and buffers, then the batch.
        names: of these weights and buffers.
        structure: of the program's result.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    structure: Any

    def __call__(self, model: torch.nn.Module, batch: Sequence[torch.Tensor]) -> Any:
        """Return the program's result for the present weights of the model."""
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        with keep_node_meta():
            made = fx.Interpreter(self.module).run(*(state[name] for name in self.names), *batch)
        return unflatten(list(made), self.structure)
