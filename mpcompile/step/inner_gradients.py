"""Record a program that computes gradients inside its loss.

The program is used by `mpcompile.program.tracing.inner_gradients`.

The recorder sees ops below autograd. There the ops of an inner backward pass are like all others,
but so is what must not be differentiated: ``x.detach()``, ``torch.no_grad()``, a gradient that was
computed without ``create_graph``. An op reads such a tensor through a ``detach`` node: the tensor
that the program passes requires no gradient although the result that it shows does, or gradients
are off while the op runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mpcompile.program.tracing.inner_gradients import RecordedProgram
from mpcompile.program.tracing.value_checks import without_value_checks
from mpcompile.program.workload import Workload
from mpcompile.step.record import Recorder, record_with
from mpcompile.step.recorded_number import Numbers
from mpcompile.torch_private.tensors import fake_mode
from mpcompile.torch_private.tracing import flatten

_ATEN = torch.ops.aten
_DETACH = _ATEN.detach.default


def record_program(workload: Workload) -> RecordedProgram:
    """Run a program once on tensors without values and return its graph; nothing is changed.

    Args:
        workload: a program with a loss.

    Raises:
        CannotCapture: it uses a tensor that is neither its model's nor of the batch.
    """
    whole = _Whole(workload)
    state = dict(whole.named_parameters()) | dict(whole.named_buffers())
    needs = [value.requires_grad for value in (*state.values(), *workload.batch)]
    structures: list[Any] = []

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for value, needed in zip(values, needs, strict=True):
            value.requires_grad_(needed)
        given, batch = values[: len(state)], values[len(state) :]
        with torch.enable_grad(), without_value_checks():
            result = torch.func.functional_call(
                whole, dict(zip(state, given, strict=True)), tuple(batch)
            )
        leaves, structure = flatten(result)
        structures.append(structure)
        return tuple(leaves)

    mode = fake_mode()
    fakes = [
        mode.from_tensor(value.detach(), static_shapes=True)
        for value in (*state.values(), *workload.batch)
    ]
    with torch.backends.cudnn.flags(enabled=False):  # the kernel that runs is chosen later
        module = record_with(_RecorderOfGradients, run, fakes, mode, Numbers())
    for node in module.graph.nodes:
        if node.target is _ATEN.native_batch_norm.default:
            # The schema of this op does not say that it writes to running statistics.
            node.target = _ATEN._native_batch_norm_legit.default
    names = tuple(name.removeprefix("model.") for name in state)
    return RecordedProgram(module, names, structures[0])


class _Whole(torch.nn.Module):
    """A program as a module, whose weights can be replaced for one call."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model = workload.model
        self._workload = workload

    def forward(self, *batch: torch.Tensor) -> Any:
        """Return the result of the program."""
        return self._workload.run(self.model, batch)


class _RecorderOfGradients(Recorder):
    """Puts a ``detach`` before an op that reads a tensor without its gradient."""

    def node_read(self, value: torch.Tensor) -> fx.Node:
        """Return the node that the op which runs now reads for a tensor."""
        node = self.node_of(value)
        made = node.meta["val"]
        if not made.requires_grad or (value.requires_grad and torch.is_grad_enabled()):
            return node
        for user in node.users:
            if user.target is _DETACH:
                return user
        with self.graph.inserting_after(node):
            blocked = self.graph.call_function(_DETACH, (node,))
        blocked.meta = {**node.meta, "val": made.detach()}
        return blocked
