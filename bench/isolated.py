"""Run a function in worker processes that may crash or hang, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a call that did not return.

    Attributes:
        what: ``"crashed"``, ``"stopped after 60 s"`` or ``"raised"``.
        why: the signal or exit status, or the exception in one line.
    """

    what: str
    why: str


class Isolated(Generic[Task, Result]):
    """Processes that call one function; each serves many calls and is replaced after a crash.

    Args:
        function: at the top level of a module, so that another process can import it.
        workers: number of processes.
        limit: seconds for one call.
    """

    def __init__(
        self, function: Callable[[Task], Result], workers: int = 2, limit: float = 60
    ) -> None:
        self.limit = limit
        self.workers = [_Worker(function) for _ in range(workers)]

    def __enter__(self) -> Isolated[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    def map(self, tasks: Iterable[Task]) -> list[Result | Failure]:
        """Call the function with each task; return its results in the order of the tasks.

        Args:
            tasks: arguments that can be pickled.
        """
        free: SimpleQueue[_Worker[Task, Result]] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def call(task: Task) -> Result | Failure:
            worker = free.get()
            try:
                return worker.call(task, self.limit)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as threads:
            return list(threads.map(call, tasks))


class _Worker(Generic[Task, Result]):
    def __init__(self, function: Callable[[Task], Result]) -> None:
        self.function = function
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.function), daemon=True)
        self.process.start()
        other.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def call(self, task: Task, limit: float) -> Result | Failure:
        found: Result | Failure
        try:
            self.pipe.send(task)
            if self.pipe.poll(limit):
                found = self.pipe.recv()
                return found
            found = Failure(f"stopped after {limit:.0f} s", "")
        except (EOFError, ConnectionError):
            self.process.join()
            found = Failure("crashed", f"exit status {self.process.exitcode}")
        self.stop()
        self.start()
        return found


def _serve(pipe: Connection, function: Callable[[Task], Result]) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(task))
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            pipe.send(Failure("raised", f"{type(error).__name__}: {said[0]}"))
