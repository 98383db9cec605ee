"""Save a training step's state and load it again: bit for bit, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from mpcompile.errors import BadInput, DamagedCheckpoint, warn
from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.plan.diff import in_words, plan_diff
from mpcompile.plan.plan import Plan
from mpcompile.program.random_state import every_state, seed_all, set_every_state
from mpcompile.step.loss_scale import LossScale
from mpcompile.train.checkpoint_file import Checkpoint, Opened, ProcessState, write_checkpoint
from mpcompile.train.checkpoint_folder import drop_old, folder_of, make_room, newest
from mpcompile.train.state_tree import pack, unpack
from mpcompile.train.users_state import LateState
from mpcompile.validation import short

_SHOWN = 3
_BESIDE = ("also.", "random.", "group.", "process.")
_SCALING = (f"step.{SCALE}", f"step.{TRACKER}")


class Stateful(Protocol):
    """The methods that schedulers, loaders and modules have in common."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over a state."""


@dataclass(frozen=True, slots=True)
class Held:
    """The state of a step that a checkpoint saves.

    Attributes:
        tensors: the step's state by the user's own names, as views that can be written to.
        optimizer: its options are saved.
        plan: the plan of the step.
        rule: the step's loss scaling.
        device: the step's device.
        steps: the number of steps taken and skipped so far.
        written: must be called after writes to the tensors.
    """

    tensors: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    plan: Plan
    rule: LossScale
    device: torch.device
    steps: int
    written: Callable[[], None]

    @property
    def largest(self) -> int:
        """Most bytes that a checkpoint's state may have; leaves room for averages of weights."""
        return 16 * sum(value.nbytes for value in self.tensors.values()) + (1 << 30)


def save(
    held: Held,
    run: Path,
    keep: int | None,
    also: Mapping[str, Stateful],
    others: Sequence[ProcessState] = (),
) -> Path:
    """Write a checkpoint; see `mpcompile.TrainStep.save`.

    Args:
        held: the step's state.
        run: the folder of the run.
        keep: how many checkpoints stay.
        also: other objects with a state.
        others: the state that each other process has of its own, not packed.
    """
    if keep is not None and keep < 1:
        raise BadInput(f"keep is {keep}", fix="give at least 1")
    more: dict[str, torch.Tensor] = {}
    checkpoint = Checkpoint(
        steps=held.steps,
        torch=str(torch.__version__),
        optimizer=type(held.optimizer).__name__,
        loss_scale=held.rule,
        groups=tuple(_options(group, more) for group in held.optimizer.param_groups),
        random=pack(every_state(held.device), "random", more),
        also={name: pack(item.state_dict(), f"also.{name}", more) for name, item in also.items()},
        others=tuple(
            ProcessState(
                pack(one.random, f"process.{rank}.random", more),
                {name: pack(v, f"process.{rank}.{name}", more) for name, v in one.also.items()},
            )
            for rank, one in enumerate(others, start=1)
        ),
    )
    folder = folder_of(run, held.steps)
    make_room(folder, held.largest)
    write_checkpoint(folder, checkpoint, held.plan, {**held.tensors, **more})
    if keep is not None:
        drop_old(folder, keep)
    return folder


def load(
    held: Held,
    run: Path,
    any_plan: bool,
    also: Mapping[str, Stateful],
    rank: int = 0,
    ranks: int = 1,
) -> Path:
    """Take over a checkpoint; see `mpcompile.TrainStep.load`.

    If the number of processes is that of the checkpoint, each process gets back its own state.
    Otherwise each gets the state of the first process, and random numbers that no other has.

    Args:
        held: the step's state, which is overwritten.
        run: the folder of the run, or one checkpoint.
        any_plan: whether the checkpoint may have another plan.
        also: other objects that load a state.
        rank: the index of this process.
        ranks: the number of processes.
    """
    opened, damaged = newest(run, held.largest)
    for what in damaged:
        warn(f"{what}; {opened.folder} is loaded", DamagedCheckpoint)
    where, checkpoint = str(opened.folder), opened.checkpoint
    same = len(checkpoint.others) == ranks - 1
    if rank and same:
        own = checkpoint.others[rank - 1]
        checkpoint = replace(checkpoint, random=own.random, also=own.also)
    if not any_plan:
        _check_step(held, opened)
    stored = opened.tensors()
    tensors = {n: v for n, v in stored.items() if not n.startswith(_BESIDE)}
    wanted = dict(held.tensors)
    if any_plan and not held.rule.continues(checkpoint.loss_scale):
        for name in _SCALING:
            tensors.pop(name, None)
            wanted.pop(name, None)
    late = LateState(dict(tensors), wanted, held.optimizer)
    for name in late.new:
        del tensors[name]
    for name in late.gone:
        del wanted[name]
    _check_tensors(tensors, wanted, where)
    states = _states(checkpoint, stored, also, where)
    groups = [
        {name: unpack(value, stored) for name, value in group.items()}
        for group in checkpoint.groups
    ]
    _check_options(held, checkpoint.optimizer, groups, any_plan, where)
    random = unpack(checkpoint.random, stored)
    for name, item in also.items():
        item.load_state_dict(states[name])
    with torch.no_grad():
        for name, value in tensors.items():
            wanted[name].copy_(value)
    late.take_over()
    held.written()
    for group, options in zip(held.optimizer.param_groups, groups, strict=True):
        for name, value in options.items():
            if _is_rate(name) and isinstance(group.get(name), torch.Tensor):
                group[name].fill_(float(value))
            elif _is_rate(name):
                group[name] = value
    # Last: a loader may have drawn random numbers to find its position in the data.
    set_every_state(random, held.device)
    if rank and not same:
        seed_all(int(torch.randint(2**31, ())) + rank)
    return opened.folder


def _options(group: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a parameter group's options without those that no file can hold, such as functions."""
    options = {}
    for name, value in group.items():
        if name != "params":
            try:
                options[name] = pack(value, "group", tensors)
            except BadInput:
                continue
    return options


def _check_step(held: Held, opened: Opened) -> None:
    """Raise BadInput, which names the differences, if another step was saved."""
    diff = plan_diff(opened.plan, held.plan, "the checkpoint", "this step")
    where = str(opened.folder)
    if not diff.same:
        lines = in_words(diff)
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise BadInput(
            f"the checkpoint has another plan: {'; '.join(islice(lines, _SHOWN))}{more}",
            where,
            "compile with the plan.json of the checkpoint, or load with any_plan=True",
        )
    if not held.rule.continues(opened.checkpoint.loss_scale):
        raise BadInput(
            f"the checkpoint was trained with {opened.checkpoint.loss_scale}, but this step has "
            f"{held.rule}",
            where,
            "compile with that loss scale, or load with any_plan=True",
        )


def _check_tensors(
    stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str
) -> None:
    advice = "load a checkpoint of the same model and optimizer"
    for what, names in (
        ("the checkpoint lacks", wanted.keys() - stored.keys()),
        ("this step has no", stored.keys() - wanted.keys()),
    ):
        if names:
            raise BadInput(f"{what} {short(min(names))}", where, advice)
    for name, value in wanted.items():
        other = stored[name]
        if other.shape != value.shape or other.dtype is not value.dtype:
            what = f"{name} is {_type(other)} in the checkpoint, but {_type(value)} in this step"
            raise BadInput(what, where, advice)


def _type(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _states(
    checkpoint: Checkpoint,
    stored: Mapping[str, torch.Tensor],
    also: Mapping[str, Stateful],
    where: str,
) -> dict[str, Any]:
    """Return the other objects' states; raise BadInput if the names differ from those requested."""
    for name in checkpoint.also:
        if name not in also:
            what = (
                f"the checkpoint holds the state of {short(name)}, but load() has no such argument"
            )
            raise BadInput(what, where, "give load() the same arguments as save()")
    for name in also:
        if name not in checkpoint.also:
            raise BadInput(
                f"the checkpoint holds no state of {name}", where, f"call load() without {name}"
            )
    return {name: unpack(state, stored) for name, state in checkpoint.also.items()}


def _check_options(
    held: Held, optimizer: str, groups: list[dict[str, Any]], any_plan: bool, where: str
) -> None:
    """Raise BadInput if the saved optimizer differs from this one in more than learning rates."""
    mine = type(held.optimizer).__name__
    if optimizer != mine or len(groups) != len(held.optimizer.param_groups):
        raise BadInput(
            f"the checkpoint is of {short(optimizer)[1:-1]} with {len(groups)} parameter groups, "
            f"but this step is of {mine} with {len(held.optimizer.param_groups)}",
            where,
            "load a checkpoint of the same model and optimizer",
        )
    for index, (group, options) in enumerate(zip(held.optimizer.param_groups, groups, strict=True)):
        for name, value in options.items():
            if _is_rate(name):
                fits = isinstance(value, int | float | torch.Tensor | None)
            else:
                fits = any_plan or name not in group or _same(group[name], value)
            if not fits:
                raise BadInput(
                    f"{name} of parameter group {index} is {short(value)} in the checkpoint, but "
                    f"{short(group.get(name))} in this step",
                    where,
                    "give the optimizer the same options, or load with any_plan=True",
                )


def _is_rate(option: str) -> bool:
    """Whether an option is a learning rate; schedulers add ``initial_lr`` and more."""
    return option == "lr" or option.endswith("_lr")


def _same(mine: Any, other: Any) -> bool:
    if isinstance(mine, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(mine, torch.Tensor | float) and bool(
            torch.equal(torch.as_tensor(mine).cpu(), torch.as_tensor(other))
        )
    return bool(mine == other)
