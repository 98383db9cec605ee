"""The processes that torchrun starts for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from mpcompile.errors import BadInput
from mpcompile.step.processes import DataParallel, data_parallel, lost

_EVERYTHING: Any = distributed  # its types leave some names out


@contextmanager
def launched(*, shard: bool, reduce: str) -> Iterator[DataParallel | None]:
    """Join the processes that torchrun has started; yield None if this process is alone.

    On each process the name ``cuda`` means the CUDA device of its local rank.

    Args:
        shard: see `mpcompile.data_parallel`.
        reduce: see `mpcompile.data_parallel`.

    Raises:
        LostProcess: another process has ended.
    """
    if not distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if shard or reduce != "float32":
            what = "--shard and --reduce need several processes, but this process is alone"
            raise BadInput(what, fix="start mpcompile with torchrun, or leave out the two flags")
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        _join()
        yield data_parallel(shard=shard, reduce=reduce)
        # Not after an error: other processes may have ended, and this one would wait for them.
        distributed.barrier()
        distributed.destroy_process_group()
    except RuntimeError as error:
        gone = lost(error)
        if gone is None:
            raise
        raise gone from error


def _join() -> None:
    """Make the process group.

    The processes find each other by a store. When torchrun starts them again, it may keep this
    store, with the addresses of processes that have ended. So each attempt has its own prefix. It
    works on one machine only, where all processes know the number of the attempt.
    """
    store, rank, ranks = next(_EVERYTHING.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = _EVERYTHING.PrefixStore(f"attempt{attempt}", store)
    distributed.init_process_group(store=store, rank=rank, world_size=ranks)
