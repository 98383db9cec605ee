"""Fork the processes of runs from one that has imported and used the modules that they need.

It reads requests from stdin, one line of JSON each: ``ranks``, ``words`` as for `torchrun`,
``told`` for the environment, and ``out``, a file for their output. It answers each with one line,
the exit code. It sees no GPU, because threads of CUDA or autograd do not survive a fork.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import mpcompile
import mpcompile.cli
import mpcompile.commands.run
import mpcompile.train.checkpoint


def main() -> None:
    _warm()
    gc.set_threshold(50_000, 10, 10)  # as conftest.py does, here for the processes that are forked
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        agent = os.fork()
        if not agent:
            _look_after(**json.loads(line))
        _, status = os.waitpid(agent, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _warm() -> None:
    """Train a small net, so that torch imports and builds the rest.

    The first backward decides how many threads autograd starts, one for each device. Fake tensors
    give a CUDA build of torch without a GPU eight devices, so this backward must run before them.
    """
    torch.ones(1, requires_grad=True).sum().backward()
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        batch = (torch.ones(2, 2),)
        optimizer = torch.optim.AdamW(model.parameters())
        mpcompile.compile(model, lambda model, x: model(x).mean(), optimizer, batch)(*batch)


def _look_after(ranks: int, words: list[str], told: dict[str, str], out: str) -> NoReturn:
    """Fork the processes, hold their store, and stop all when one fails, as torchrun does."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": "nursery",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **told,
    }
    alive = set()
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            _be({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, words, out)
        alive.add(pid)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    failed = 0
    while alive:
        pid, status = os.wait()
        alive.discard(pid)
        if status and not failed:
            failed = 1
            for other in alive:
                os.kill(other, signal.SIGKILL)
    del store
    os._exit(failed)


def _be(environment: dict[str, str], words: list[str], out: str) -> NoReturn:
    """Run a program as one of several processes."""
    os.environ.update(environment)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code: Any = 0
    try:
        if words[0] == "-m":
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
