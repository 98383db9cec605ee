"""``torch.compile(model, backend="mpcompile")``: casts by our plan in each graph that Dynamo makes.

Autograd, graph breaks, the optimizer and the loss scale stay with the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from mpcompile.errors import BadInput
from mpcompile.pieces.dynamo_graph import compile_graph
from mpcompile.settings import Settings, check_settings
from mpcompile.torch_private.tracing import keep_missing_gradients

keep_missing_gradients()

_NOT_HERE = {
    "loss_scale": "scale the loss in the training loop, with torch.amp.GradScaler",
    "without": "leave it out, because these passes need the whole training step",
    "lint": "leave it out, because only `mpcompile lint` reads it",
}


def mpcompile(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Rewrite one graph of Dynamo; the entry point of the group ``torch_dynamo_backends``.

    The default of the backend is ``interpreter`` on a CPU and ``inductor`` on CUDA; see
    `mpcompile.pieces.dynamo_graph.compile_graph`.

    Args:
        module: calls of torch functions; parameters and buffers are inputs.
        inputs: fake tensors, and symbols for dynamic sizes.
        options: as in ``torch.compile(options=...)``: ``level``, ``precision``, ``full``, ``half``,
            ``free`` and ``backend``, as in ``[tool.mpcompile]``.
        mode: must be None; torch passes it on if the user gives one.

    Raises:
        BadInput: an option is wrong, or the model runs under ``torch.autocast``. Dynamo raises it
            as the cause of its own ``BackendCompilerFailed``.
    """
    if mode is not None:
        raise BadInput(
            f"this backend has no mode {mode!r}",
            "torch.compile",
            "leave out mode=, and give options=",
        )
    settings = settings_of(options or {})
    return compile_graph(module, inputs, settings.policy, settings.backend)[0]


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return the checked options of ``torch.compile``; raises BadInput."""
    where = "the options of torch.compile"
    for name, advice in _NOT_HERE.items():
        if name in options:
            raise BadInput(f"{name} is not an option of this backend", where, advice)
    return check_settings(dict(options), where)
