"""Note the derivatives that a program writes itself while it is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import CellType
from typing import Any

import torch

from mpcompile.errors import CannotCapture
from mpcompile.program.own_backward import OP, Gradients, OwnBackward
from mpcompile.torch_private.own_derivatives import (
    Context,
    DataReplaced,
    Function,
    applied_by_torch,
    backward_of,
    fp32_inside,
    intercepted,
    is_checkpoint,
    sets_up_context,
)


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
            if getattr(module, "_is_full_backward_hook", None) is False:
                raise CannotCapture(
                    f"the module {name or type(module).__name__} has a hook of register_backward_hook",
                    fix="use register_full_backward_hook",
                )
        with intercepted(self._apply, self._on_tensor, self._on_leaf, partial(_ModuleHooks, self)):  # type: ignore[arg-type]
            try:
                yield
            except DataReplaced:
                raise CannotCapture(
                    "the program assigns to tensor.data",
                    self._position(),
                    "write to the tensor in place under torch.no_grad(), with tensor.copy_(...)",
                ) from None

    def hook_parameters(
        self, parameters: dict[str, torch.Tensor], now: dict[str, torch.Tensor]
    ) -> None:
        """Note the hooks that parameters have had before the capture.

        Args:
            parameters: the user's own, by name.
            now: those that the capture has put in their place.
        """
        for name, parameter in parameters.items():
            hooks = dict(getattr(parameter, "_backward_hooks", None) or {})
            for hook in hooks.values():
                self.hook(now[name], hook)
            for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
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
        places = _tensors_of(hook)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            with _in_place_of(places, saved):
                made = hook(given[0])
            return [given[0] if made is None else made]

        return self._note_hook(tensor, hook, places, gradients)

    def _on_grad(self, tensor: torch.Tensor, hook: Callable[..., Any], name: str) -> OwnBackward:
        """Note a hook that runs when a parameter's gradient is complete, and may change it."""
        places = _tensors_of(hook)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            *read, weight = saved
            leaf = weight.detach().requires_grad_()
            assert given[0] is not None
            leaf.grad = given[0].clone()
            version = leaf._version
            with _in_place_of(places, read), torch.no_grad():
                hook(leaf)
            if leaf.grad is None or leaf._version != version:
                raise CannotCapture(
                    f"a hook of the parameter {name} writes to the parameter or drops its gradient",
                    _line_of(hook),
                    "let the step's optimizer update the weights",
                )
            return [leaf.grad]

        return self._note_hook(tensor, hook, [*places, _Place([tensor], 0)], gradients)

    def _note_hook(
        self,
        tensor: torch.Tensor,
        hook: Callable[..., Any],
        places: list[_Place],
        gradients: Callable[[Sequence[torch.Tensor], Gradients], Gradients],
    ) -> OwnBackward:
        saved = [place.value for place in places]
        own = OwnBackward(
            _name_of(hook),
            gradients,
            tuple(value.dtype for value in saved),
            is_hook=True,
            where=self._position() or _line_of(hook),
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

    def _apply(self, function: Function, *args: Any) -> Any:
        """Stand for ``Function.apply``: run forward without gradients, note backward."""
        if is_checkpoint(function):
            run, _, *inputs = args
            return run(*inputs)
        if function.__module__.partition(".")[0] == "torch":
            return applied_by_torch(function, *args)
        needs = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        ctx = Context(needs)
        inside = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        self._inside += 1
        try:
            if sets_up_context(function):
                made = function.forward(*inside)
                function.setup_context(ctx, tuple(inside), made)
            else:
                made = function.forward(ctx, *inside)
        finally:
            self._inside -= 1
        if ctx.dirty_tensors:
            raise CannotCapture(
                f"the autograd Function {function.__name__} writes to its input",
                self._position(),
                "let it return a new tensor, and leave out ctx.mark_dirty",
            )
        if self._inside or not (torch.is_grad_enabled() and any(needs)):
            return made
        return self._differentiable(function, ctx, args, made)

    def _differentiable(
        self, function: Function, ctx: Context, args: tuple[Any, ...], made: Any
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
        places = _tensors_in(ctx.__dict__, depth=3)
        saved = [place.value for place in places]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
        likes = [value if isinstance(value, torch.Tensor) else None for value in results]
        backward, name = backward_of(function), function.__name__

        def gradients(read: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            by_index = dict(zip(found, given, strict=True))
            filled = [
                torch.zeros(like.shape, dtype=like.dtype, device=like.device)
                if by_index.get(index) is None and like is not None and ctx.materialize_grads
                else by_index.get(index)
                for index, like in enumerate(likes)
            ]
            with _in_place_of(places, read):
                returned = backward(ctx, *filled)
            returned = returned if isinstance(returned, tuple | list) else (returned,)
            return [returned[index] for index in wanted]

        own = OwnBackward(
            name,
            gradients,
            tuple(value.dtype for value in saved),
            is_hook=False,
            where=self._position(),
            fp32=fp32_inside(function),
        )
        values = self.mark(
            [results[index] for index in found], [args[index] for index in wanted], saved, own
        )
        for index, value in zip(found, values, strict=True):
            results[index] = value
        return type(made)(results) if isinstance(made, tuple | list) else results[0]


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


class _Place:
    """Where the user's code holds a tensor: a key of a container, or a closure's cell."""

    def __init__(self, holder: Any, key: Any) -> None:
        self._holder, self._key = holder, key

    @property
    def value(self) -> Any:
        """The tensor."""
        held = self._holder
        return held.cell_contents if isinstance(held, CellType) else held[self._key]

    def put(self, value: torch.Tensor) -> None:
        """Put another tensor there."""
        if isinstance(self._holder, CellType):
            self._holder.cell_contents = value
        else:
            self._holder[self._key] = value


@contextmanager
def _in_place_of(places: Sequence[_Place], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let the user's code find these tensors where it held those of the capture."""
    before = [place.value for place in places]
    for place, value in zip(places, values, strict=True):
        place.put(value)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.put(value)


def _tensors_in(holder: dict[Any, Any] | list[Any], depth: int) -> list[_Place]:
    """Find the tensors in a container; tuples in it become lists, to which one can write."""
    found: list[_Place] = []
    pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for key, value in pairs:
        if isinstance(value, torch.Tensor):
            found.append(_Place(holder, key))
        elif type(value) is tuple and depth and _holds_tensor(value, depth):
            holder[key] = inner = list(value)
            found += _tensors_in(inner, depth - 1)
        elif type(value) in (list, dict) and depth:
            found += _tensors_in(value, depth - 1)
    return found


def _holds_tensor(values: tuple[Any, ...], depth: int) -> bool:
    return any(
        isinstance(value, torch.Tensor)
        or (type(value) is tuple and depth > 0 and _holds_tensor(value, depth - 1))
        or type(value) in (list, dict)
        for value in values
    )


def _tensors_of(function: Any) -> list[_Place]:
    """Find the tensors that a hook's code holds: in its closure, its object, its bound arguments."""
    if isinstance(function, partial):
        inner = _tensors_in(function.keywords, depth=2)
        return [*_tensors_of(function.func), *inner]
    found: list[_Place] = []
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        for module in owner.modules():
            found += _tensors_in(module._parameters, depth=0) + _tensors_in(
                module._buffers, depth=0
            )
    elif owner is not None and hasattr(owner, "__dict__"):
        found += _tensors_in(owner.__dict__, depth=2)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if isinstance(value, torch.Tensor):
            found.append(_Place(cell, None))
        elif type(value) in (list, dict):
            found += _tensors_in(value, depth=2)
        elif isinstance(value, torch.nn.Module):
            for module in value.modules():
                found += _tensors_in(module._parameters, depth=0)
                found += _tensors_in(module._buffers, depth=0)
    return found


def _name_of(hook: Any) -> str:
    return getattr(hook, "__name__", type(hook).__name__)


def _line_of(hook: Any) -> str | None:
    code = getattr(hook, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else None


class _ModuleHooks:
    """Stand for ``torch.utils.hooks.BackwardHook``: full backward hooks of one call of a module.

    Args:
        noted: gets the derivatives.
        module: the called module.
        hooks: its full backward hooks.
        before: its full backward pre-hooks.
    """

    def __init__(
        self,
        noted: Noted,
        module: torch.nn.Module,
        hooks: Sequence[Callable[..., Any]],
        before: Sequence[Callable[..., Any]],
    ) -> None:
        self._noted, self._module = noted, module
        self._hooks, self._before = list(hooks), list(before)
        self._has_inputs = False
        self._count = 0
        self._output_gradients: tuple[Any, ...] | None = None

    def setup_input_hook(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note what runs when the gradients of the module's inputs are known."""
        self._count = len(args)

        def gradients(saved: Sequence[torch.Tensor], given: Gradients) -> Gradients:
            del saved
            result = self._spread(places, given, self._count)
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
            del saved
            result = self._spread(places, given, len(given_args))
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
        name = ", ".join(map(_name_of, [*self._before, *self._hooks]))
        where = _line_of([*self._before, *self._hooks][0])
        own = OwnBackward(name, gradients, (), is_hook=False, where=where)
        tensors = [args[index] for index in places]
        results = list(args)
        for index, value in zip(places, self._noted.mark(tensors, tensors, [], own), strict=True):
            results[index] = value
        return tuple(results), places

    @staticmethod
    def _spread(places: Sequence[int], given: Gradients, count: int) -> tuple[Any, ...]:
        result: list[Any] = [None] * count
        for index, value in zip(places, given, strict=True):
            result[index] = value
        return tuple(result)
