"""Complex parameters: the step trains the real and imaginary parts as FP32 numbers.

A master is ``torch.view_as_real`` of a parameter: FP32, with a last dimension of two. The graph
begins with ``view_as_complex`` of it. PyTorch's elementwise optimizers see complex parameters in
the same way, so the update of the master is theirs.
"""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.torch_private.tensors import fake_like


def as_real(value: torch.Tensor) -> torch.Tensor:
    """Return the parts of a complex tensor as a view of one more dimension; others as they are."""
    return torch.view_as_real(value) if value.is_complex() else value


def like_of(parameter: torch.Tensor, master: torch.Tensor) -> torch.Tensor:
    """Return a master as a view like its parameter."""
    return torch.view_as_complex(master) if parameter.is_complex() else master


def take_as_real(graph: fx.Graph, placeholder: fx.Node) -> None:
    """Let a graph take a complex parameter as its parts.

    Args:
        graph: the parameter's forward graph.
        placeholder: its node, whose value is complex.
    """
    whole = placeholder.meta["val"]
    with graph.inserting_after(placeholder):
        joined = graph.call_function(torch.ops.aten.view_as_complex.default, (placeholder,))
    placeholder.replace_all_uses_with(joined, lambda user: user is not joined)
    joined.meta = {**placeholder.meta}
    shape = (*whole.shape, 2)
    dtype = whole.dtype.to_real()
    placeholder.meta = {
        **placeholder.meta,
        "val": fake_like(whole.fake_mode, shape, dtype, whole.device),
    }
