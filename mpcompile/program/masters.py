"""FP32 masters of parameters that the user's model holds in 16 bits.

The program stays as it is written: while it runs, it sees each such parameter as a cast of its
master. So it computes in the dtypes of its own, and the optimizer updates in FP32, as the paper's
section 3.1 asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.own_derivatives import own_tensors

_LOG = logging.getLogger("mpcompile")
_OWN_DTYPES = WeakTensorKeyDictionary()
"""The dtype that the program has given to a parameter whose master it is now."""


def own_dtypes(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[str, torch.dtype]:
    """Return, by name, the 16-bit dtypes of parameters that have masters or are trained.

    Args:
        model: a parameter with two names is there under both.
        optimizer: holds the parameters that are to be trained.
    """
    trained = {
        id(parameter)
        for group in (optimizer.param_groups if optimizer is not None else ())
        for parameter in group["params"]
        if parameter.requires_grad and parameter.dtype in NARROW
    }
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dtype is torch.float32 and parameter in _OWN_DTYPES:
            found[name] = _OWN_DTYPES[parameter]
        elif id(parameter) in trained:
            found[name] = parameter.dtype
    return found


@contextmanager
def masters_of(model: torch.nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Turn the 16-bit parameters of these names into FP32 ones; if ``with`` raises, back again."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    made: dict[str, tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor | None]] = {}
    for name, dtype in dtypes.items():
        parameter = parameters[name]
        if parameter.dtype is not torch.float32:
            gradient = parameter.grad
            made[name] = parameter, parameter.data, gradient
            parameter.grad = None
            parameter.data = parameter.data.float()
            parameter.grad = None if gradient is None else gradient.float()
            _OWN_DTYPES[parameter] = dtype
    try:
        yield
    except BaseException:
        for parameter, value, gradient in made.values():
            parameter.grad = None
            parameter.data = value
            parameter.grad = gradient
            del _OWN_DTYPES[parameter]
        raise
    if made:
        _LOG.warning(
            "%d parameters are in 16 bits (%s first); they become FP32 masters, of which the "
            "program reads casts to its own dtype",
            len(made),
            next(iter(made)),
        )


@contextmanager
def seen_in_own_dtypes(model: torch.nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Let the modules hold casts of the masters inside ``with``, one for each parameter."""
    casts: dict[int, torch.Tensor] = {}
    changed = []
    for name, dtype in dtypes.items():
        path, _, attribute = name.rpartition(".")
        owned = own_tensors(model.get_submodule(path))[0]
        master = owned[attribute]
        assert master is not None
        cast = casts.setdefault(id(master), master.to(dtype))
        changed.append((owned, attribute, master))
        owned[attribute] = cast
    try:
        yield
    finally:
        for owned, attribute, master in changed:
            owned[attribute] = master
