"""Where a program gives autograd derivatives of its own: Functions, hooks, ``tensor.data``.

Checked on torch 2.11, 2.13, 2.14 and 2.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.utils.checkpoint
from torch.autograd.function import FunctionCtx, FunctionMeta, _SingleLevelFunction


@dataclass(frozen=True)
class OwnFunction:
    """A custom autograd Function of the program.

    Attributes:
        name: of its class.
        forward: its own forward.
        setup_context: its own ``setup_context``; None: forward gets the context.
        backward: its own derivative, under either of its two names.
        fp32: whether ``torch.amp.custom_fwd(cast_inputs=torch.float32)`` decorates forward.
    """

    name: str
    forward: Callable[..., Any]
    setup_context: Callable[..., Any] | None
    backward: Callable[..., Any]
    fp32: bool


@contextmanager
def intercepted(
    apply: Callable[[OwnFunction, tuple[Any, ...]], Any],
    tensor_hook: Callable[[torch.Tensor, Callable[..., Any]], Any],
    grad_hook: Callable[[torch.Tensor, Callable[..., Any]], Any],
    module_hooks: Callable[..., Any],
) -> Iterator[None]:
    """Let the user's code call these functions where autograd would note a derivative.

    Args:
        apply: in place of the forward of each custom Function; gets the Function and the arguments
            of ``Function.apply``, and returns its results. ``apply`` itself cannot be replaced: a
            program may keep it under another name, and since torch 2.14 it is not Python.
        tensor_hook: in place of ``Tensor.register_hook``.
        grad_hook: in place of ``Tensor.register_post_accumulate_grad_hook``.
        module_hooks: in place of the class that installs full backward hooks of modules.
    """
    with ExitStack() as undo:

        def put(owner: Any, name: str, value: Any) -> None:
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)

        def stand_in(function: Any) -> None:
            home = function.__module__
            if home.partition(".")[0] != "torch" or home.startswith("torch.distributions."):
                forward, setup_context = _stand_ins(function, apply)
                put(function, "forward", staticmethod(forward))
                if setup_context is not None:
                    put(function, "setup_context", staticmethod(setup_context))

        def made(cls: Any, *args: Any) -> None:
            begin(cls, *args)
            stand_in(cls)

        begin: Any = FunctionMeta.__init__
        functions = _subclasses(torch.autograd.Function)
        for function in functions:
            stand_in(function)
        put(FunctionMeta, "__init__", made)  # a program may define a Function while it runs
        # Only a plain function becomes a method of the class.
        put(torch.Tensor, "register_hook", lambda self, hook: tensor_hook(self, hook))
        put(
            torch.Tensor,
            "register_post_accumulate_grad_hook",
            lambda self, hook: grad_hook(self, hook),
        )
        put(torch.Tensor, "data", property(torch.Tensor.detach, _set_data))
        put(torch.nn.modules.module, "BackwardHook", module_hooks)
        # The block runs once, and autograd differentiates it like any other part.
        put(torch.utils.checkpoint, "CheckpointFunction", _RunsOnce)
        yield


class _RunsOnce:
    @staticmethod
    def apply(run: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        del preserve_rng_state
        return run(*args)


def _subclasses(kind: Any) -> list[Any]:
    found = []
    for each in kind.__subclasses__():
        found += [each, *_subclasses(each)]
    return found


def _stand_ins(
    function: Any, apply: Callable[[OwnFunction, tuple[Any, ...]], Any]
) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Return what takes the place of a Function's forward and of its ``setup_context``."""
    sets_up = function.setup_context is not _SingleLevelFunction.setup_context
    own_backward = function.backward is not _SingleLevelFunction.backward
    own = OwnFunction(
        function.__name__,
        function.forward,
        function.setup_context if sets_up else None,
        function.backward if own_backward else function.vjp,
        _fp32_inside(function.forward),
    )

    @wraps(own.forward)  # torch binds default arguments by its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        if sets_up:
            # `apply` runs forward without gradients; otherwise the program calls it itself.
            by_apply = not torch.is_grad_enabled()
        else:
            by_apply = bool(args) and isinstance(args[0], torch._C._FunctionBase)
        if not by_apply:
            return own.forward(*args, **kwargs)
        with _gradients_unseen():
            return apply(own, args if sets_up else args[1:])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(ctx, Context) and own.setup_context is not None:
            own.setup_context(ctx, inputs, output)

    return forward, setup_context if sets_up else None


@contextmanager
def _gradients_unseen() -> Iterator[None]:
    """Turn gradients on; what traces the program does not see it, as it did not see them go off.

    Otherwise it would note the mode that ``torch.no_grad()`` restores inside a Function's forward,
    and take the rest of the program for a region without gradients.
    """
    before = torch.is_grad_enabled()
    with torch._C.DisableTorchFunction():
        torch._C._set_grad_enabled(True)
    try:
        yield
    finally:
        with torch._C.DisableTorchFunction():
            torch._C._set_grad_enabled(before)


def _fp32_inside(forward: Any) -> bool:
    """Whether ``torch.amp.custom_fwd(cast_inputs=torch.float32)`` decorates a Function's forward.

    The decorator keeps its options in the closure of the function that it returns.
    """
    while forward is not None:
        code = getattr(forward, "__code__", None)
        if code is not None and "cast_inputs" in code.co_freevars:
            cells = dict(zip(code.co_freevars, forward.__closure__, strict=True))
            return cells["cast_inputs"].cell_contents is torch.float32
        forward = getattr(forward, "__wrapped__", None)
    return False


class DataReplaced(Exception):
    """The program assigns data of another shape or dtype to ``tensor.data``."""


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
        raise DataReplaced
    with torch.no_grad():
        tensor.copy_(value)


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
