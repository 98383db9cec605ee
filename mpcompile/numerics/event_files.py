"""The scalars of a run as files that TensorBoard reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from mpcompile.errors import BadInput


@contextmanager
def event_files(folder: Path, first: int = 0) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a function that writes a scalar under a name at a step.

    Args:
        folder: made if it does not exist; its files stay.
        first: the first step that is written; TensorBoard drops older scalars from this step on.

    Raises:
        BadInput: TensorBoard is not installed; it is not a dependency.
    """
    try:
        writer = import_module("torch.utils.tensorboard").SummaryWriter(
            str(folder), purge_step=first or None
        )
    except ImportError as error:
        raise BadInput(
            "TensorBoard is not installed", "--tensorboard", "pip install tensorboard"
        ) from error
    with writer:
        yield writer.add_scalar
