"""Fast checks that dictionaries, torch's global settings and lists of hooks are as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._dynamo import guards
from torch.optim import optimizer as optimizers
from torch.utils.hooks import RemovableHandle

dict_version: Callable[[Any], int] = guards.dict_version
"""Return a number of a dictionary's content: another one after each entry that was set or removed.

Python 3.11 keeps such a number in each dictionary; on later versions torch watches the dictionary
from the first call on, as its own guards do.
"""


def settings_guard() -> Callable[[], bool]:
    """Return a check that autocast, the default dtype and other global settings are as now.

    It also looks at settings that no graph depends on, such as the number of threads.
    """
    check: Callable[[], bool] = guards.GlobalStateGuard().check
    return check


def hooks_made() -> int:
    """Return the number of hooks that were registered in this process, of any kind."""
    count: int = RemovableHandle.next_id
    return count


def step_hooks(optimizer: torch.optim.Optimizer) -> tuple[list[Any], list[Any]]:
    """Return the hooks that run before and after ``optimizer.step()``."""
    before = [*optimizers._global_optimizer_pre_hooks.values()]
    before += optimizer._optimizer_step_pre_hooks.values()
    after = [*optimizer._optimizer_step_post_hooks.values()]
    after += optimizers._global_optimizer_post_hooks.values()
    return before, after


def step_hook_lists(optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    """Return the dictionaries of those hooks."""
    return [
        optimizers._global_optimizer_pre_hooks,
        optimizers._global_optimizer_post_hooks,
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
    ]


def without_step_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Take the step hooks out of an optimizer."""
    optimizer._optimizer_step_pre_hooks = type(optimizer._optimizer_step_pre_hooks)()
    optimizer._optimizer_step_post_hooks = type(optimizer._optimizer_step_post_hooks)()


def plain_step(optimizer: torch.optim.Optimizer) -> None:
    """Run the optimizer's own ``step()`` without hooks.

    A schedule may have replaced ``step`` on the object, and torch has put a function that calls the
    hooks around ``step`` of the class.
    """
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__
    step(optimizer)


def tensor_hook_lists(tensors: Iterable[torch.Tensor]) -> list[dict[int, Any]]:
    """Return the dictionaries of the hooks on tensors, of those that ever had one."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    found = (getattr(tensor, name, None) for tensor in tensors for name in names)
    return [hooks for hooks in found if hooks is not None]
