"""Full backward hooks of modules as derivatives of the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpcompile.program.derivatives.held_tensors import (
    in_place_of,
    line_of,
    name_of,
    tensors_of,
    tensors_of_module,
)
from mpcompile.program.derivatives.own_backward import Gradients, OwnBackward

Mark = Callable[
    [Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor], OwnBackward],
    list[torch.Tensor],
]


class ModuleHooks:
    """Stand for ``torch.utils.hooks.BackwardHook``: full backward hooks of one call of a module.

    Args:
        mark: puts a derivative into the graph, see `Noted.mark`.
        module: the called module.
        hooks: its full backward hooks.
        before: its full backward pre-hooks.
    """

    def __init__(
        self,
        mark: Mark,
        module: torch.nn.Module,
        hooks: Sequence[Callable[..., Any]],
        before: Sequence[Callable[..., Any]],
    ) -> None:
        self._mark, self._module = mark, module
        self._hooks, self._before = list(hooks), list(before)
        held = [tensors_of(hook) for hook in [*self._before, *self._hooks]]
        self._places = [*tensors_of_module(module), *(place for each in held for place in each)]
        self._has_inputs = False
        self._count = 0
        self._output_gradients: tuple[Any, ...] | None = None

    def setup_input_hook(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note what runs when the gradients of the module's inputs are known."""
        self._count = len(args)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            result = self._spread(places, given, self._count)
            with in_place_of(self._places, saved):
                for hook in self._hooks:
                    made = hook(self._module, result, self._output_gradients)
                    result = result if made is None else made
            return [result[index] for index in places]

        results, places = self._note(args, gradients)
        self._has_inputs = bool(places)
        return results

    def setup_output_hook(self, args: Any) -> Any:
        """Note what runs when the gradients of the module's results are known."""
        given_args = args if isinstance(args, tuple) else (args,)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            result = self._spread(places, given, len(given_args))
            with in_place_of(self._places, saved):
                for hook in self._before:
                    made = hook(self._module, result)
                    result = result if made is None else made
                self._output_gradients = result
                if not self._has_inputs:
                    for hook in self._hooks:
                        hook(self._module, (None,) * self._count, result)
            return [result[index] for index in places]

        results, places = self._note(given_args, gradients)
        return results if isinstance(args, tuple) else results[0]

    def _note(
        self,
        args: tuple[Any, ...],
        gradients: Callable[[Sequence[torch.Tensor], Gradients], Gradients],
    ) -> tuple[tuple[Any, ...], list[int]]:
        places = [
            index
            for index, value in enumerate(args)
            if isinstance(value, torch.Tensor) and value.requires_grad
        ]
        if not (places and torch.is_grad_enabled()):
            return args, []
        name = ", ".join(map(name_of, [*self._before, *self._hooks]))
        where = line_of([*self._before, *self._hooks][0])
        tensors = [args[index] for index in places]
        saved = [place.value for place in self._places]
        dtypes = tuple(tensor.dtype for tensor in (*tensors, *saved))
        own = OwnBackward(name, gradients, dtypes, is_hook=False, where=where)
        results = list(args)
        for index, value in zip(places, self._mark(tensors, tensors, saved, own), strict=True):
            results[index] = value
        return tuple(results), places

    @staticmethod
    def _spread(places: Sequence[int], given: Gradients, count: int) -> tuple[Any, ...]:
        result: list[Any] = [None] * count
        for index, value in zip(places, given, strict=True):
            result[index] = value
        return tuple(result)
