"""Worker processes that may crash or hang."""

from __future__ import annotations

import os
import threading

from bench.isolated import Failure, Isolated


def misbehave(how: str) -> str:
    if how == "crash":
        os.abort()
    if how == "hang":
        threading.Event().wait()
    if how == "raise":
        raise ValueError("first line\nsecond line")
    return f"{how} done"


def test_what_goes_wrong_in_one_call_costs_no_other() -> None:
    tasks = ["good", "crash", "better", "hang", "raise", "best"]
    with Isolated(misbehave, workers=2, limit=8) as processes:
        found = processes.map(tasks)
    assert [x for x in found if isinstance(x, str)] == ["good done", "better done", "best done"]
    assert found[1] == Failure("crashed", "exit status -6")
    assert found[3] == Failure("stopped after 8 s", "")
    assert found[4] == Failure("raised", "ValueError: first line")
