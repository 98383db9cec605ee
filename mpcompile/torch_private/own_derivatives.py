"""Where a program gives autograd derivatives of its own: Functions, hooks, ``tensor.data``.

Checked on torch 2.11, 2.13, 2.14 and 2.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch.autograd.function import FunctionCtx, _SingleLevelFunction

Function = type[torch.autograd.Function]


@contextmanager
def intercepted(
    apply: Callable[..., Any],
    tensor_hook: Callable[[torch.Tensor, Callable[..., Any]], Any],
    grad_hook: Callable[[torch.Tensor, Callable[..., Any]], Any],
    module_hooks: Callable[..., Any],
) -> Iterator[None]:
    """Let the user's code call these functions where autograd would note a derivative.

    Args:
        apply: in place of ``Function.apply``; gets the class first. Also a bound ``apply`` that the
            program has kept under another name comes here, because it calls its base class.
        tensor_hook: in place of ``Tensor.register_hook``.
        grad_hook: in place of ``Tensor.register_post_accumulate_grad_hook``.
        module_hooks: in place of the class that installs full backward hooks of modules.
    """
    modules: Any = torch.nn.modules.module
    before = modules.BackwardHook
    tensor: Any = torch.Tensor
    register, accumulated = tensor.register_hook, tensor.register_post_accumulate_grad_hook
    level: Any = _SingleLevelFunction
    level.apply = classmethod(apply)
    # Only a plain function becomes a method of the class.
    tensor.register_hook = lambda self, hook: tensor_hook(self, hook)
    tensor.register_post_accumulate_grad_hook = lambda self, hook: grad_hook(self, hook)
    tensor.data = property(torch.Tensor.detach, _set_data)
    modules.BackwardHook = module_hooks
    try:
        yield
    finally:
        modules.BackwardHook = before
        del tensor.data, level.apply
        tensor.register_hook = register
        tensor.register_post_accumulate_grad_hook = accumulated


class DataReplaced(Exception):
    """The program assigns data of another shape or dtype to ``tensor.data``."""


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
        raise DataReplaced
    with torch.no_grad():
        tensor.copy_(value)


def applied_by_torch(function: Function, *args: Any) -> Any:
    """Call ``Function.apply`` as it is outside `intercepted`."""
    return torch._C._FunctionBase.__dict__["apply"].__get__(None, function)(*args)


def sets_up_context(function: Function) -> bool:
    """Whether the Function has ``setup_context``, so that its forward gets no context."""
    return function.setup_context is not _SingleLevelFunction.setup_context


def is_checkpoint(function: Function) -> bool:
    """Whether the Function is the one of ``torch.utils.checkpoint`` with ``use_reentrant``."""
    return function is torch.utils.checkpoint.CheckpointFunction


def backward_of(function: Function) -> Callable[..., Any]:
    """Return the Function's derivative, which may be under either of its two names."""
    own = function.backward is not _SingleLevelFunction.backward
    return function.backward if own else function.vjp


def fp32_inside(function: Function) -> bool:
    """Whether ``torch.amp.custom_fwd(cast_inputs=torch.float32)`` decorates the Function's forward.

    The decorator keeps its options in the closure of the function that it returns.
    """
    forward: Any = function.forward
    while forward is not None:
        code = getattr(forward, "__code__", None)
        if code is not None and "cast_inputs" in code.co_freevars:
            cells = dict(zip(code.co_freevars, forward.__closure__, strict=True))
            return cells["cast_inputs"].cell_contents is torch.float32
        forward = getattr(forward, "__wrapped__", None)
    return False


class Context(FunctionCtx):
    """The ``ctx`` of a Function.

    Attributes:
        needs_input_grad: per argument of ``apply`` whether it needs a gradient.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.to_save: tuple[Any, ...] = ()
        self.non_differentiable: tuple[Any, ...] = ()
        self.dirty_tensors: tuple[Any, ...] = ()
        self.materialize_grads = True

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The tensors that forward has saved."""
        return tuple(self.to_save)

    saved_variables = saved_tensors


def own_tensors(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dictionaries of a module's own parameters and buffers; writing to them counts."""
    return module._parameters, module._buffers


def has_old_hook(module: torch.nn.Module) -> bool:
    """Whether the module has a hook of ``register_backward_hook``."""
    return module._is_full_backward_hook is False and bool(module._backward_hooks)


def hooks_of(tensor: torch.Tensor) -> tuple[list[Any], list[Any]]:
    """Return a tensor's hooks: those of its gradient, those of its complete ``grad``."""
    gradient: dict[int, Any] = tensor._backward_hooks or {}
    complete: dict[int, Any] = getattr(tensor, "_post_accumulate_grad_hooks", None) or {}
    return list(gradient.values()), list(complete.values())
