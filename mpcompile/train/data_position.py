"""A workload's batches, and the position in the data as a state that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from mpcompile.errors import BadInput
from mpcompile.program.batch import to_call
from mpcompile.program.random_state import every_state, set_every_state
from mpcompile.program.workload import Workload
from mpcompile.step.processes import DataParallel, first_says

_ADVICE = "use the same data as the run that saved the checkpoint"


class Batches:
    """An endless iterator over a workload's batches, epoch after epoch; see `workload.epochs`.

    Data with its own ``state_dict()`` restores its position itself. Other data is iterated again up
    to the position, with the random state from the start of the epoch. The batch is the same if the
    data depends only on this random state, on its own generators and on the file that made it. A
    batch must not depend on how many random numbers the training has drawn before.

    Many processes take the batches in turn. All of them draw the same batches, with random numbers
    apart from those of the training. Of each P batches, P the number of processes, each process
    gives one. Data with a ``DistributedSampler`` is not divided further.

    Args:
        workload: its data is iterated.
        device: its random generator is saved beside the CPU's.
        parallel: the processes; None: this process alone.
    """

    def __init__(
        self, workload: Workload, device: torch.device, parallel: DataParallel | None = None
    ) -> None:
        assert workload.data is not None
        if isinstance(getattr(workload.data, "sampler", None), DistributedSampler):
            parallel = None
        self._parallel = parallel
        # From the first process, because users may not seed the generators of Python and NumPy.
        self._random: Any = first_says(every_state(device), parallel) if parallel else None
        self._data, self._origin, self._device = workload.data, workload.origin, device
        self._epoch = self._position = 0
        self._start: dict[str, Any] | None = None
        self._left: Iterator[Any] | None = None
        self._may_be_empty = False

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Return itself: there is only one position in the data."""
        return self

    def __next__(self) -> tuple[Any, ...]:
        """Return the next batch.

        Raises:
            BadInput: an epoch gave no batch.
        """
        if self._parallel is None:
            return self._next()
        outside = every_state(self._device)
        set_every_state(self._random, self._device)
        try:
            dealt = [self._next() for _ in range(self._parallel.ranks)]
            self._random = every_state(self._device)
        finally:
            set_every_state(outside, self._device)
        return dealt[self._parallel.rank]

    def _next(self) -> tuple[Any, ...]:
        while True:
            if self._left is None:
                self._start = every_state(self._device)
                self._left = self._begun()
            for batch in self._left:
                self._position += 1
                self._may_be_empty = False
                return to_call(batch, self._origin)
            if self._position == 0 and not self._may_be_empty:
                raise BadInput(
                    "the workload's data gave no batch",
                    self._origin,
                    "give data that can be iterated more than once",
                )
            self._epoch, self._position, self._left = self._epoch + 1, 0, None
            self._may_be_empty = False

    def _begun(self) -> Iterator[Any]:
        """Begin the epoch."""
        if isinstance(sampler := getattr(self._data, "sampler", None), DistributedSampler):
            sampler.set_epoch(self._epoch)
        return iter(self._data)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data."""
        random = {} if self._random is None else {"random": self._random}
        return {**self._position_state(), **random}

    def _position_state(self) -> dict[str, Any]:
        if self._data_has_state:
            loader: Any = self._data
            return {"loader": loader.state_dict(), "begun": self._left is not None}
        return {"epoch": self._epoch, "position": self._position, "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position in the data; this draws random numbers.

        Raises:
            BadInput: the data has no such position.
        """
        if not isinstance(state, dict):
            raise BadInput("the saved position in the data is not valid", self._origin, _ADVICE)
        if self._random is not None:
            set_every_state(state.get("random", self._random), self._device)
        self._go_to_epoch(state)
        if self._random is not None:
            self._random = every_state(self._device)

    def _go_to_epoch(self, state: dict[str, Any]) -> None:
        if self._data_has_state != ("loader" in state):
            what = "has a state_dict()" if self._data_has_state else "has no load_state_dict()"
            raise BadInput(
                f"the workload's data {what}, unlike the data of the checkpoint",
                self._origin,
                _ADVICE,
            )
        if self._data_has_state:
            loader: Any = self._data
            loader.load_state_dict(state["loader"])
            if state.get("begun"):
                self._left, self._may_be_empty = iter(loader), True
            return
        epoch, position, start = (state.get(key) for key in ("epoch", "position", "start"))
        if not isinstance(epoch, int) or not isinstance(position, int):
            raise BadInput("the saved position in the data is not valid", self._origin, _ADVICE)
        # A generator inside the data continues from epoch to epoch, so each epoch is iterated.
        for _ in range(epoch):
            for _ in self._data:
                pass
        self._epoch, self._position, self._start, self._left = epoch, position, start, None
        if start is not None:
            self._go_to(position, start)

    def _go_to(self, position: int, start: dict[str, Any]) -> None:
        """Iterate an epoch up to a position."""
        set_every_state(start, self._device)
        self._left = self._begun()
        for taken in range(position):
            if next(self._left, self) is self:
                what = f"the workload's data ends after {taken} batches, before batch {position}"
                raise BadInput(what, self._origin, _ADVICE)

    @property
    def _data_has_state(self) -> bool:
        return all(hasattr(self._data, name) for name in ("state_dict", "load_state_dict"))
