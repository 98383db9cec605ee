"""One training step on many processes, each with its own batch (`torch.distributed`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from mpcompile.errors import BadInput, LostProcess
from mpcompile.precision import Precision

_LOST = ("gloo", "nccl error", "connection closed by peer", "connection reset by peer")
"""Texts in errors of a lost connection that have no class of their own."""


@dataclass(frozen=True, slots=True)
class DataParallel:
    """How a step is shared by the processes of a group; made by `data_parallel`.

    Attributes:
        ranks: how many processes.
        rank: the index of this process.
        found: returns the process group. A group that is still referenced when Python ends may
            crash the process (seen with gloo in torch 2.13).
        shard: each process keeps and updates its own slice of masters and optimizer state
            (ZeRO stage 1, arXiv 1910.02054 section 5.1).
        reduce: the precision in which gradients travel and are added up.
        bucket_bytes: bytes of gradients that travel together.
    """

    ranks: int
    rank: int
    found: Callable[[], Any]
    shard: bool = False
    reduce: Precision = Precision.FP32
    bucket_bytes: int = 25 << 20

    @property
    def group(self) -> Any:
        """The process group."""
        return self.found()

    @property
    def name(self) -> str:
        """The name by which the ops of a graph find the group."""
        return str(self.group.group_name)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which gradients travel."""
        return getattr(torch, self.reduce.value)  # type: ignore[no-any-return]

    def in_update(self, accumulate: int) -> bool:
        """Whether gradients are averaged in the update, for this many micro-batches per update."""
        return self.shard or accumulate > 1


def data_parallel(
    *,
    shard: bool = False,
    reduce: Precision | str = Precision.FP32,
    bucket_bytes: int = 25 << 20,
    group: Any = None,
) -> DataParallel:
    """Describe how the processes that `torch.distributed` has joined share a step.

    Each process calls the step with its own rows, and the update reads the mean of their gradients.
    With batches of one size and a mean as loss, this is the step of one process on all rows.

    Args:
        shard: each process keeps and updates its own slice of masters and optimizer state. For
            optimizers that work element by element.
        reduce: ``"float16"`` halves the bytes that are sent: each gradient is divided by the number
            of processes before it is rounded, so that the sum overflows no sooner than its terms.
        bucket_bytes: bytes of gradients that travel together, while backward runs.
        group: a process group; default: all processes.

    Raises:
        BadInput: there is no process group yet, or an argument is wrong.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise BadInput(
            "torch.distributed has no process group yet",
            fix="start the script with torchrun and call "
            "torch.distributed.init_process_group() first",
        )
    try:
        reduce = Precision(reduce)
    except ValueError:
        raise BadInput(
            f"gradients cannot travel as {reduce!r}",
            fix="choose 'float32', 'float16' or 'bfloat16'",
        ) from None
    if bucket_bytes < 1:
        raise BadInput(f"bucket_bytes is {bucket_bytes}", fix="give at least 1")
    group = group or distributed.group.WORLD
    rank = distributed.get_rank(group)
    if rank < 0:
        raise BadInput(
            "this process is not in the group", fix="compile in the processes of the group only"
        )
    ranks = distributed.get_world_size(group)
    return DataParallel(ranks, rank, weakref.ref(group), shard, reduce, bucket_bytes)


def meeting_place(device: torch.device, parallel: DataParallel) -> torch.device:
    """Return the device on which the group can exchange a tensor of this device."""
    backends = str(distributed.get_backend_config(parallel.group))
    return device if f"{device.type}:" in backends else torch.device("cuda")


def lost(error: RuntimeError) -> LostProcess | None:
    """Return the exception for an error of a collective operation; None for any other error."""
    text = str(error)
    backend = isinstance(error, distributed.DistError)
    if not backend and not any(word in text.lower() for word in _LOST):
        return None
    return LostProcess(
        f"another process of this run is gone or does not answer ({text.splitlines()[0][:160]})",
        fix="read the last output of that process, then start all processes again from the "
        "newest checkpoint",
    )


def is_first(parallel: DataParallel | None) -> bool:
    """Whether this process is the one that prints and writes files."""
    return parallel is None or parallel.rank == 0


def first_says(value: Any, parallel: DataParallel | None) -> Any:
    """Return the first process's value on all of them."""
    if parallel is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, group=parallel.group, group_src=0)
    return values[0]


def all_say(value: Any, parallel: DataParallel | None) -> list[Any]:
    """Return the values of all processes."""
    if parallel is None:
        return [value]
    values = [None] * parallel.ranks
    distributed.all_gather_object(values, value, group=parallel.group)
    return values


def largest(number: int, parallel: DataParallel | None) -> int:
    """Return the largest of the numbers of all processes."""
    if parallel is None:
        return number
    device = meeting_place(torch.device("cpu"), parallel)
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=parallel.group)
    return int(value)
