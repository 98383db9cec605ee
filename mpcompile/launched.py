"""The processes that torchrun has started for one command, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from mpcompile.processes import DataParallel, data_parallel, lost, meeting_place

_EVERYTHING: Any = distributed  # its types leave some names out


@contextmanager
def launched(*, shard: bool, reduce: str) -> Iterator[DataParallel | None]:
    """Join the processes that torchrun has started; None if this one is alone.

    Each has the CUDA device of its own place on the machine, under the name ``cuda``.

    Args:
        shard: see `mpcompile.data_parallel`.
        reduce: see there.

    Raises:
        LostProcess: another process is gone.
    """
    if not distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        _join()
        yield data_parallel(shard=shard, reduce=reduce)
    except RuntimeError as error:
        raise lost(error) or error from error
    # Not after an error: then others may be gone, and this would wait for them.
    distributed.barrier()
    distributed.destroy_process_group()


def _join() -> None:
    """Make the process group.

    When torchrun starts its processes again it may keep the store by which they find each other,
    and they would find the addresses of those that are gone. On one machine all of them know how
    often that has happened.
    """
    store, rank, ranks = next(_EVERYTHING.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = _EVERYTHING.PrefixStore(f"attempt{attempt}", store)
    distributed.init_process_group(store=store, rank=rank, world_size=ranks)


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
    """Return the largest of all processes' numbers; nothing waits for a device."""
    if parallel is None:
        return number
    device = meeting_place(torch.device("cpu"), parallel)
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=parallel.group)
    return int(value)
