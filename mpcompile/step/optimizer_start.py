"""The first step of an optimizer, found by running ``step()`` on small parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcompile.step.arena import ALIGNMENT, Arena
from mpcompile.step.optimizer_options import KERNELS, is_input, parts, replaced
from mpcompile.torch_private.guarding import plain_step, without_step_hooks

State = dict[str, torch.Tensor]

BEGUN = "begun"
"""The slot that says whether an arena has had its first step: ``arena0.begun``, 1 or 0."""


@dataclass(frozen=True, slots=True)
class Start:
    """The state before the first step.

    Attributes:
        state: small tensors, whose first element fills the whole state.
        alike: whether a first step from this state is like every other step, for all options.
            Otherwise ``step()`` must fill an empty state itself.
    """

    state: State
    alike: bool


class StepFails(Exception):
    """The optimizer's own ``step()`` raises on plain tensors of the shapes that it was given.

    Only that call is inside the ``try``, and nothing records it, so the error is never mpcompile's.
    The optimizer's error is the cause.
    """


class _Recorded(dict[str, Any]):
    """An optimizer state that remembers the first value of each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.first: State = {}

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.first and isinstance(value, torch.Tensor):
            self.first[key] = value.detach().clone()
        super().__setitem__(key, value)


def optimizer_around(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], state: Mapping[Any, Any]
) -> torch.optim.Optimizer:
    """Return a copy of the user's optimizer with other parameters and state, without hooks.

    Step it with `mpcompile.torch_private.guarding.plain_step`.
    """
    shell: torch.optim.Optimizer = object.__new__(type(optimizer))
    shell.__dict__.update(optimizer.__dict__)
    shell.param_groups = groups
    shell.state = state  # type: ignore[assignment]
    without_step_hooks(shell)
    return shell


def group_of(optimizer: torch.optim.Optimizer, arena: Arena, **changes: Any) -> dict[str, Any]:
    """Return the options of an arena's group, without those that choose a special kernel."""
    group = {**optimizer.param_groups[arena.group]}
    group |= {option: False for option in KERNELS if option in group}
    return {**group, **changes}


def start_of(optimizer: torch.optim.Optimizer, arena: Arena) -> Start:
    """Return the optimizer's state before the first step.

    ``step()`` fills an empty state on a small parameter (of the parameter's own shape if that
    matters), and the first value of each entry is recorded.

    Raises:
        StepFails: ``step()`` does not accept this parameter: Muon refuses a flat one.
    """
    try:
        state = _first_state(optimizer, arena, {})
    except StepFails as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        # Adagrad fills the state when it is made
        made: Mapping[str, Any] = next(
            (s for p, s in optimizer.state.items() if not isinstance(p, str)), {}
        )
        return Start(_first_state(optimizer, arena, made), alike=True)
    moved = {
        name: value * 0.5
        for name, value in parts(optimizer.param_groups[arena.group])
        if is_input(name, value)
    }
    other = _first_state(optimizer, arena, {}, moved)
    fixed = all(torch.equal(value, other[key]) for key, value in state.items())
    kept = {key: value.clone() for key, value in state.items()}
    [empty], [full] = _run(optimizer, arena, [{}]), _run(optimizer, arena, [kept])
    if arena.flat:  # a ``step()`` that reshapes may accept one length and refuse another
        _run(optimizer, arena, [{}], length=3 * ALIGNMENT)
    return Start(state, fixed and torch.equal(empty, full))


def _shape(arena: Arena, length: int = ALIGNMENT) -> tuple[int, ...]:
    return (length,) if arena.flat else arena.shape


def _plain_step(shell: torch.optim.Optimizer) -> None:
    """Run ``step()`` on plain tensors; raises StepFails."""
    try:
        plain_step(shell)
    except Exception as error:
        raise StepFails(type(shell).__name__) from error


def _first_state(
    optimizer: torch.optim.Optimizer,
    arena: Arena,
    made: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> State:
    """Run one step on zeros, from a state like a given one; return each first value."""
    shape = _shape(arena)
    zeros = torch.zeros(shape)
    zeros.grad = torch.zeros(shape)
    recorded = _Recorded()
    for key, value in made.items():
        if isinstance(value, torch.Tensor):
            whole = value.dim() == 0
            recorded[key] = torch.zeros(()) if whole else torch.zeros(shape, dtype=value.dtype)
    group = replaced(group_of(optimizer, arena, params=[zeros]), options or {})
    shell = optimizer_around(optimizer, [group], defaultdict(dict, {zeros: recorded}))
    _plain_step(shell)
    return recorded.first


def _run(
    optimizer: torch.optim.Optimizer,
    arena: Arena,
    states: Sequence[dict[str, Any]],
    length: int = ALIGNMENT,
) -> list[torch.Tensor]:
    """Run two steps on as many small parameters as there are states; return them."""
    generator = torch.Generator().manual_seed(0)
    shape = _shape(arena, length)
    weight, *gradients = (torch.randn(shape, generator=generator) for _ in range(3))
    parameters = [weight * (1 + index) for index in range(len(states))]
    shell = optimizer_around(
        optimizer,
        [group_of(optimizer, arena, params=parameters)],
        defaultdict(dict, dict(zip(parameters, states, strict=True))),
    )
    for gradient in gradients:
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient * (1 - index / 2)
        _plain_step(shell)
    return parameters


def state_shape(arena: Arena, first: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of an optimizer state's slot, given its small first value."""
    if not arena.flat:
        return tuple(first.shape)
    return arena.shape if first.dim() > 0 else (len(arena.parameters),)


def has_begun(states: Iterable[Mapping[str, Any]], first: Mapping[str, torch.Tensor]) -> bool:
    """Whether one of the parameters' states differs from the one before the first step."""
    return any(
        bool((state[key] != value.flatten()[0].to(state[key].device)).any())
        for state in states
        for key, value in first.items()
        if isinstance(state.get(key), torch.Tensor)
    )


def progress_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, Hashable]:
    """Return what must be equal of parameters in one arena: counters, and which state is zero.

    Parameters differ in it if some were frozen for a time, or came to the optimizer later.

    Args:
        optimizer: the user's, with its present state.
        parameters: its parameters by name.
    """
    entries = {
        (name, key): value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    numbers = {
        place: value.detach().double() if value.dim() == 0 else value.detach().any().double()
        for place, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    values: dict[tuple[str, str], Any] = {}
    for device in {value.device for value in numbers.values()}:  # one read of each device
        here = {place: value for place, value in numbers.items() if value.device == device}
        values |= zip(here, torch.stack(list(here.values())).tolist(), strict=True)
    found: dict[str, list[Any]] = {name: [] for name in parameters}
    for (name, key), value in entries.items():
        plain = isinstance(value, bool | int | float)
        found[name].append((key, value if plain else values.get((name, key))))
    return {name: tuple(sorted(each, key=lambda pair: pair[0])) for name, each in found.items()}


def acts_alone(optimizer: torch.optim.Optimizer, arena: Arena) -> bool:
    """Whether another parameter in the group changes nothing: two steps are run both ways."""
    state = start_of(optimizer, arena).state
    copies = [{key: value.clone() for key, value in state.items()} for _ in range(3)]
    [alone] = _run(optimizer, arena, copies[:1])
    return torch.equal(alone, _run(optimizer, arena, copies[1:])[0])


def keeps_zeros(optimizer: torch.optim.Optimizer, arena: Arena, initial: State) -> bool:
    """Whether weights of 0 with state and gradients of 0 stay 0: two steps are run to test it."""
    zeros = torch.zeros(ALIGNMENT)
    state = {
        key: torch.zeros(ALIGNMENT, dtype=value.dtype) if value.dim() else value.clone()
        for key, value in initial.items()
    }
    shell = optimizer_around(
        optimizer, [group_of(optimizer, arena, params=[zeros])], defaultdict(dict, {zeros: state})
    )
    for _ in range(2):
        zeros.grad = torch.zeros(ALIGNMENT)
        _plain_step(shell)
    return not zeros.any()
