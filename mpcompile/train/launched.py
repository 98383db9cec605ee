"""The processes that torchrun has started for one command."""

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
    """Join the processes that torchrun has started; None if this one is alone.

    Each has the CUDA device of its own place on the machine, under the name ``cuda``.

    Args:
        shard: see `mpcompile.data_parallel`.
        reduce: see there.

    Raises:
        LostProcess: another process is gone.
    """
    if not distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if shard or reduce != "float32":
            what = "--shard and --reduce are for several processes, and this one is alone"
            raise BadInput(what, fix="start it with torchrun, or leave them out")
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        _join()
        yield data_parallel(shard=shard, reduce=reduce)
        # Not after an error: then others may be gone, and this would wait for them.
        distributed.barrier()
        distributed.destroy_process_group()
    except RuntimeError as error:
        gone = lost(error)
        if gone is None:
            raise
        raise gone from error


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
