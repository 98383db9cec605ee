"""Note the derivatives that a program writes itself while it is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from mpcompile.errors import CannotCapture
from mpcompile.program.derivatives.held_tensors import (
    Place,
    in_place_of,
    line_of,
    name_of,
    tensors_in,
    tensors_of,
)
from mpcompile.program.derivatives.module_hooks import ModuleHooks
from mpcompile.program.derivatives.own_backward import OP, Gradients, OwnBackward
from mpcompile.torch_private.own_derivatives import (
    Context,
    DataReplaced,
    OwnFunction,
    has_old_hook,
    hooks_of,
    intercepted,
)
from mpcompile.torch_private.tensors import version_of


class Noted:
    """The derivatives of one captured program, in the order in which the program runs.

    Attributes:
        own: the derivatives; the position of each is its key in the graph.

    Args:
        position: returns the user's line that runs now, or None.
    """

    def __init__(self, position: Callable[[], str | None]) -> None:
        self.own: list[OwnBackward] = []
        self._position = position
        self._inside = 0

    @contextmanager
    def noting(self, model: torch.nn.Module) -> Iterator[None]:
        """Note what the code inside ``with`` does, and the hooks of the model's parameters.

        Args:
            model: its parameters are those of the capture.

        Raises:
            CannotCapture: there is a hook that a graph cannot hold.
        """
        for name, module in model.named_modules():
            if has_old_hook(module):
                raise CannotCapture(
                    f"the module {name or type(module).__name__} has an old backward hook",
                    fix="register it with register_full_backward_hook",
                )
        with intercepted(
            self._apply, self._on_tensor, self._on_leaf, partial(ModuleHooks, self.mark)
        ):
            try:
                yield
            except DataReplaced:
                raise CannotCapture(
                    "the program assigns data of another shape or dtype to tensor.data",
                    self._position(),
                    "keep its shape and dtype",
                ) from None

    def hook_parameters(
        self, parameters: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]
    ) -> None:
        """Note the hooks that parameters have had before the capture.

        Args:
            parameters: the user's own, by name.
            now: those that the capture has put in their place.
        """
        for name, parameter in parameters.items():
            gradient, complete = hooks_of(parameter)
            for hook in gradient:
                self.hook(now[name], hook)
            for hook in complete:
                self._on_grad(now[name], hook, name)

    def mark(
        self,
        values: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        saved: Sequence[torch.Tensor],
        own: OwnBackward,
    ) -> list[torch.Tensor]:
        """Put a derivative into the graph; return the values in front of which it runs."""
        self.own.append(own)
        made: list[torch.Tensor] = OP(list(values), list(inputs), list(saved), len(self.own) - 1)
        return made

    def hook(self, tensor: torch.Tensor, hook: Callable[..., Any]) -> OwnBackward:
        """Note a hook of a tensor: it may replace the tensor's gradient."""
        places = tensors_of(hook)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            with in_place_of(places, saved):
                made = hook(given[0])
            return [given[0] if made is None else made]

        return self._note_hook(tensor, hook, places, gradients)

    def _on_grad(self, tensor: torch.Tensor, hook: Callable[..., Any], name: str) -> OwnBackward:
        """Note a hook that runs when a parameter's gradient is complete, and may change it."""
        places = tensors_of(hook)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            *read, weight = saved
            leaf = weight.detach().requires_grad_()
            assert given[0] is not None
            leaf.grad = given[0].clone()
            version = version_of(leaf)
            with in_place_of(places, read), torch.no_grad():
                hook(leaf)
            if leaf.grad is None or version_of(leaf) != version:
                raise CannotCapture(
                    f"a hook of the parameter {name} writes to the parameter or drops its gradient",
                    line_of(hook),
                    "let the step's optimizer update the weights",
                )
            return [leaf.grad]

        own = self._note_hook(tensor, hook, [*places, Place([tensor], 0)], gradients)
        own.complete = True
        return own

    def _note_hook(
        self,
        tensor: torch.Tensor,
        hook: Callable[..., Any],
        places: list[Place],
        gradients: Callable[[Sequence[torch.Tensor], Gradients], Gradients],
    ) -> OwnBackward:
        saved = [place.value for place in places]
        own = OwnBackward(
            name_of(hook),
            gradients,
            tuple(value.dtype for value in (tensor, *saved)),
            is_hook=True,
            where=self._position() or line_of(hook),
        )
        self.mark([tensor], [tensor], saved, own)
        return own

    def _on_tensor(self, tensor: torch.Tensor, hook: Callable[..., Any]) -> _Handle:
        if not tensor.requires_grad:
            raise RuntimeError(  # as PyTorch does
                "cannot register a hook on a tensor that doesn't require gradient"
            )
        return _Handle(self.hook(tensor, hook))

    def _on_leaf(self, tensor: torch.Tensor, hook: Callable[..., Any]) -> _Handle:
        return _Handle(self._on_grad(tensor, hook, "that the program hooks"))

    def _apply(self, function: OwnFunction, args: tuple[Any, ...]) -> Any:
        """Stand for a Function's forward, which runs without gradients; note its backward."""
        needs = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        ctx = Context(needs)
        inside = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        self._inside += 1
        try:
            if function.setup_context is None:
                made = function.forward(ctx, *inside)
            else:
                made = function.forward(*inside)
                function.setup_context(ctx, tuple(inside), made)
        finally:
            self._inside -= 1
        if ctx.dirty_tensors:
            raise CannotCapture(
                f"the autograd Function {function.name} writes to its input",
                self._position(),
                "let it return a new tensor, and leave out ctx.mark_dirty",
            )
        if self._inside:
            return made
        if not any(needs):  # gradients reach none of the tensors that forward reads otherwise
            return _detached(made)
        return self._differentiable(function, ctx, args, made)

    def _differentiable(
        self, function: OwnFunction, ctx: Context, args: tuple[Any, ...], made: Any
    ) -> Any:
        results = list(made) if isinstance(made, tuple | list) else [made]
        plain = {id(value) for value in ctx.non_differentiable}
        found = [
            index
            for index, value in enumerate(results)
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and id(value) not in plain
        ]
        places = tensors_in(ctx.__dict__, depth=3)
        saved = [place.value for place in places]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
        likes = [value if isinstance(value, torch.Tensor) else None for value in results]
        backward, name = function.backward, function.name

        def gradients(read: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            by_index = dict(zip(found, given, strict=True))
            filled = [
                torch.zeros(like.shape, dtype=like.dtype, device=like.device)
                if by_index.get(index) is None and like is not None and ctx.materialize_grads
                else by_index.get(index)
                for index, like in enumerate(likes)
            ]
            with in_place_of(places, read):
                returned = backward(ctx, *filled)
            returned = returned if isinstance(returned, tuple | list) else (returned,)
            return [returned[index] for index in wanted]

        own = OwnBackward(
            name,
            gradients,
            tuple(value.dtype for value in (*(results[index] for index in found), *saved)),
            is_hook=False,
            where=self._position(),
            fp32=function.fp32,
        )
        values = self.mark(
            [results[index] for index in found], [args[index] for index in wanted], saved, own
        )
        for index, value in zip(found, values, strict=True):
            results[index] = value
        return type(made)(results) if isinstance(made, tuple | list) else results[0]


def _detached(made: Any) -> Any:
    if isinstance(made, tuple | list):
        return type(made)(map(_detached, made))
    return made.detach() if isinstance(made, torch.Tensor) else made


class _Handle:
    """What ``register_hook`` returns."""

    def __init__(self, own: OwnBackward) -> None:
        self._own = own

    def remove(self) -> None:
        """Take the hook away again."""
        self._own.removed = True

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
