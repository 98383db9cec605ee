"""Options of an optimizer: which are inputs of the compiled step, and how they reach it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.program.numbers.formulas import Guard

KERNELS = ("foreach", "fused", "capturable", "differentiable")
"""Options that choose one of PyTorch's own kernels; the step has its own kernels."""


def parts(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a group by name, each part of a tuple separately: ``betas.0``.

    A whole number beside a float counts as a float: ``(1e-6, 50)``.
    """
    for key, value in options.items():
        if key == "params" or key in KERNELS:
            continue
        if isinstance(value, tuple | list):
            floats = any(isinstance(item, float) for item in value)
            for index, item in enumerate(value):
                yield f"{key}.{index}", float(item) if floats and type(item) is int else item
        else:
            yield key, value


def is_input(name: str, value: Any) -> bool:
    """Whether an option is an input of the step.

    Floats and tensors are inputs. A whole number may be a count, and for an option of 0 most
    optimizers skip the arithmetic, so these are constants; but a learning rate may start at 0.
    """
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    if name == "lr":
        return isinstance(value, int | float)
    return isinstance(value, float) and value != 0


def replaced(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's options with some values replaced, named as in `parts`."""

    def of(key: str, value: Any) -> Any:
        if isinstance(value, tuple | list) and key != "params":
            return type(value)(values.get(f"{key}.{k}", item) for k, item in enumerate(value))
        return values.get(key, value)

    return {key: of(key, value) for key, value in options.items()}


def constants_of(optimizer: torch.optim.Optimizer) -> tuple[tuple[str, str], ...]:
    """Return the options that are constants of a step, each as a name and a text."""
    return tuple(
        (f"group{index}.{name}", "an input" if is_input(name, value) else repr(value))
        for index, group in enumerate(optimizer.param_groups)
        for name, value in parts(group)
    )


def guards_hold(optimizer: torch.optim.Optimizer, guards: Iterable[Guard]) -> bool:
    """Whether the present options decide the branches of a trace as they did in the trace."""
    now = {
        f"group{index}.{name}": value
        for index, group in enumerate(optimizer.param_groups)
        for name, value in parts(group)
    }
    return all(
        guard.holds({name: float(now[name]) for name in guard.condition.options()})
        for guard in guards
    )


class OptionInputs:
    """Writes the optimizer's options into the slots of a step when they change.

    Args:
        optimizer: the user's, with the options of the trace.
        guards: comparisons of options that decided branches of the trace.
        state: the step's tensors by slot name; an option is ``group0.lr``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        guards: Iterable[Guard],
        state: Mapping[str, torch.Tensor],
    ) -> None:
        self._optimizer = optimizer
        self._guards = {(guard.condition.options(), guard) for guard in guards}
        self._state = state
        self._traced = [dict(parts(group)) for group in optimizer.param_groups]
        self._seen: list[dict[str, Any]] = [{} for _ in self._traced]
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hand_over(self) -> None:
        """Copy the options that changed since the last step; no value is read from a device.

        Raises:
            BadInput: a constant of the step has changed, or a branch would have another result.
        """
        groups = self._optimizer.param_groups
        if len(groups) != len(self._traced):
            raise BadInput(
                f"the optimizer has {len(groups)} parameter groups, but the step was compiled for "
                f"{len(self._traced)}",
                fix="compile again",
            )
        if any(_differs(group, seen) for group, seen in zip(groups, self._seen, strict=True)):
            self._take(groups)
        for slot, value in self._tensors:
            slot.copy_(value.detach().reshape(()), non_blocking=True)

    def _take(self, groups: Sequence[dict[str, Any]]) -> None:
        now = {
            f"group{index}.{name}": value
            for index, group in enumerate(groups)
            for name, value in parts(group)
        }
        for index, traced in enumerate(self._traced):
            for name, before in traced.items():
                self._check(index, name, before, now)
        self._tensors = []
        for name, value in now.items():
            slot = self._state.get(name)
            if slot is not None and isinstance(value, torch.Tensor):
                self._tensors.append((slot, value))
            elif slot is not None:
                slot.fill_(value)
        self._seen = [
            {
                key: list(value) if isinstance(value, list) else value
                for key, value in group.items()
                if key != "params" and key not in KERNELS
            }
            for group in groups
        ]

    def _check(self, index: int, name: str, before: Any, now: Mapping[str, Any]) -> None:
        """Raise BadInput if an option has a value for which the graph is wrong."""
        full = f"group{index}.{name}"
        value = now.get(full)
        if value is before:
            return
        what = f"the {name} of the optimizer's group {index} changed from {before} to {value}"
        if not is_input(name, before):
            if value != before:
                zero = ", or from a start other than 0" * (before == 0 and before is not False)
                raise BadInput(
                    f"{what}, but it is a constant of the compiled step",
                    fix=f"compile again with the new value{zero}",
                )
        elif not isinstance(value, int | float | torch.Tensor):
            raise BadInput(f"{what}, which is not a number", fix="give a number")
        kind = type(self._optimizer).__name__
        for names, guard in self._guards:
            if full in names and not guard.holds({key: float(now[key]) for key in names}):
                raise BadInput(
                    f"{what}, and {kind}.step() then does other arithmetic than the compiled step",
                    fix="compile again with the new value",
                )


def _differs(options: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Whether an option has changed; tensors are compared by identity, not by value."""
    if not seen:
        return True
    for key, value in seen.items():
        now = options.get(key)
        if now is not value and (isinstance(now, torch.Tensor) or isinstance(value, torch.Tensor)):
            return True
        if now is not value and now != value:
            return True
    return False
