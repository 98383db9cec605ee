"""Where the trained parameters are stored, and what was put in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mpcompile.errors import BadInput
from mpcompile.step.slices import absent, is_absent


class Places:
    """The memory that a step has given to each parameter it trains."""

    def __init__(self) -> None:
        self._views: dict[int, tuple[str, torch.Tensor, torch.Tensor | None]] = {}

    def __contains__(self, parameter: torch.Tensor) -> bool:
        """Whether the step trains a parameter."""
        return id(parameter) in self._views

    def note(self, name: str, parameter: torch.Tensor, view: torch.Tensor | None) -> None:
        """Note where a parameter is stored; None: this process holds a slice of it."""
        self._views[id(parameter)] = name, parameter, view

    def take_up(self, moved: Sequence[torch.Tensor]) -> bool:
        """Copy the values of trained parameters that were moved, and move them back.

        Returns:
            Whether a value was copied.

        Raises:
            BadInput: one has another device, dtype or shape now, or shares memory with another.
        """
        found = [self._views[id(tensor)] for tensor in moved if id(tensor) in self._views]
        other = [
            (name, parameter, view)
            for name, parameter, view in found
            if not (is_absent(parameter) if view is None else _same_place(parameter, view))
        ]
        for name, parameter, view in other:
            if (
                view is None
                or parameter.dtype is not view.dtype
                or parameter.device != view.device
                or parameter.shape != view.shape
            ):
                raise BadInput(
                    f"the model's parameters were moved after this step was compiled: {name} is "
                    f"{str(parameter.dtype).removeprefix('torch.')}{list(parameter.shape)} on "
                    f"{parameter.device}",
                    fix="compile the step after model.to(...)",
                )
        self._refuse_shared(other)
        for _, parameter, view in other:
            assert view is not None
            view.copy_(parameter.detach())
            parameter.data = view
        return bool(other)

    def _refuse_shared(
        self, moved: Sequence[tuple[str, torch.Tensor, torch.Tensor | None]]
    ) -> None:
        """Refuse two trained parameters in one memory: each step would write both."""
        names = {
            view.data_ptr(): name
            for name, parameter, view in self._views.values()
            if view is not None and _same_place(parameter, view)
        }
        for name, parameter, _ in moved:
            first = names.setdefault(parameter.data_ptr(), name)
            if first != name and parameter.numel():
                raise BadInput(
                    f"{name} has got the memory of {first}, and the step trains both",
                    fix="make them one parameter of the model, and compile again",
                )


@contextmanager
def placeholders_for_absent(
    parameters: Sequence[torch.Tensor], device: torch.device
) -> Iterator[None]:
    """Give absent weights memory without values inside a ``with`` block."""
    missing = [parameter for parameter in parameters if is_absent(parameter)]
    for parameter in missing:
        parameter.data = torch.empty(parameter.shape, device=device)
    try:
        yield
    finally:
        for parameter in missing:
            parameter.data = absent(parameter, device)


def _same_place(parameter: torch.Tensor, view: torch.Tensor) -> bool:
    return parameter.data_ptr() == view.data_ptr() and parameter.shape == view.shape
