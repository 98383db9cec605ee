"""A program that Dynamo compiles in as many pieces as it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch

MOST_PIECES = 64
"""Dynamo makes so many graphs for each of the user's functions; then it leaves them to Python."""

_SETTINGS = {
    "skip_nnmodule_hook_guards": False,
    "recompile_limit": MOST_PIECES,
    "use_numpy_random_stream": True,  # else Dynamo draws NumPy's numbers from torch
}
_BREAKS = logging.getLogger("torch._dynamo.variables.tensor")
_MODULES = str(Path(torch.__file__).parent / "nn" / "modules")


class InPieces:
    """A function that is compiled in pieces, apart from all other functions.

    Dynamo compiles the function, or gives it up for a loop that looks at values. It then compiles
    the user's functions that are called there, and no function in torch's files: no line of a
    ``Sequential`` that such a function calls would be compiled. So the calls of all modules with
    weights that are of torch's own are compiled too, while this function runs.

    Args:
        function: any.
        model: its modules; the call of a module that the user has compiled stays as it is.
        backend: compiles each piece.
    """

    def __init__(
        self, function: Callable[..., Any], model: torch.nn.Module, backend: Callable[..., Any]
    ) -> None:
        self._model, self._backend, self._has_run = model, backend, False
        self._calls: WeakKeyDictionary[torch.nn.Module, Callable[..., Any]] = WeakKeyDictionary()
        self._made = torch.compile(_apart(function), backend=backend)
        # ``config.patch`` would take longer than a small piece.
        self._set: Callable[[], Callable[[], None]]
        self._set = torch._dynamo.config._make_closure_patcher(**_SETTINGS)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the function."""
        if not self._has_run:  # not before: making a step changes nothing of the user's
            self._has_run = True
            _compile_own_calls(self._model)
        _running.append(self)
        _BREAKS.addFilter(_is_no_break)
        put_back = self._set()
        try:
            return self._made(*args, **named)
        finally:
            put_back()
            _BREAKS.removeFilter(_is_no_break)
            _running.pop()

    def call_of(self, module: torch.nn.Module) -> Callable[..., Any]:
        """Return the compiled call of a module."""
        made = self._calls.get(module)
        if made is None:

            def whole_call(*args: Any, **named: Any) -> Any:
                return module._call_impl(*args, **named)

            self._calls[module] = made = torch.compile(_apart(whole_call), backend=self._backend)
        return made


_running: list[InPieces] = []


class OwnCall:
    """The call of a module of torch's own, which a function in pieces compiles while it runs."""

    __slots__ = ("_module",)

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the module, as eager PyTorch does if no function in pieces runs."""
        if torch.compiler.is_compiling() or not _running:
            return self._module._call_impl(*args, **named)
        return _running[-1].call_of(self._module)(*args, **named)


def _compile_own_calls(model: torch.nn.Module) -> None:
    """Let modules of torch's own be called by `OwnCall`; a copy of a module forgets this."""
    for module in model.modules():
        forward = getattr(type(module).forward, "__code__", None)
        own = forward is not None and forward.co_filename.startswith(_MODULES)
        if own and module._compiled_call_impl is None and any(True for _ in module.parameters()):
            module._compiled_call_impl = OwnCall(module)


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with a code object of its own, because Dynamo counts graphs per code."""
    if not isinstance(function, FunctionType):

        def called(*args: Any, **named: Any) -> Any:
            return function(*args, **named)

        return _apart(called)
    # A function around this one would end at each break.
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    own.__qualname__, own.__module__ = function.__qualname__, function.__module__
    return own


def _is_no_break(record: logging.LogRecord) -> bool:
    """Whether Dynamo says something else than that a graph breaks, which the caller says."""
    return not record.getMessage().lstrip().startswith("Graph break")
