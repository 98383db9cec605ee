"""Export a program with `torch.export`, and say in one sentence why that fails."""

from __future__ import annotations

import copy
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from mpcompile.errors import BadInput, CannotCapture, CompileError, NotOneGraph
from mpcompile.program.batch_size import dynamic_shapes
from mpcompile.program.stack_lines import is_foreign
from mpcompile.program.tracing.traced_program import TracedProgram
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tracing import DataDependent

_TORCH = Path(torch.__file__).parent


def export(
    module: TracedProgram, workload: Workload, open_dims: tuple[bool, ...] = ()
) -> torch.export.ExportedProgram:
    """Run `torch.export` and turn its exception into one sentence."""
    # A tensor that is twice in the batch would become one input.
    batch = tuple(value.clone() for value in (*workload.batch, *module.examples))
    try:
        with _quiet():
            fixed = (False,) * len(module.examples)
            shapes = dynamic_shapes((*open_dims, *fixed)) if open_dims else None
            return torch.export.export(module, batch, dynamic_shapes=shapes, strict=False)
    except CompileError:
        raise
    except Exception as error:
        if module.last.recording is not None:
            raise CannotCapture(first_line(error), user_position(error)) from error
        raise _refusal(error, batch, workload) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's own warnings and logged tracebacks; mpcompile reports the error itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        # torch prints its unfinished graph at a data-dependent branch.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refusal(error: Exception, batch: tuple[Any, ...], workload: Workload) -> Exception:
    if not isinstance(error, DataDependent):
        try:
            with torch.enable_grad():
                _run_copy(workload, batch)
        except Exception as eager:
            shapes = ", ".join(str(list(value.shape)) for value in batch)
            return BadInput(
                f"the program raises {type(eager).__name__} on the example batch of shapes "
                f"{shapes}: {first_line(eager)}",
                user_position(eager) or workload.origin,
                "give a batch that loss(model, *batch) accepts",
            )
    return NotOneGraph(
        "the program cannot become one graph: "
        + (
            "Python control flow depends on the value of a tensor"
            if isinstance(error, DataDependent)
            else f"{type(error).__name__}: {first_line(error)}"
        ),
        user_position(error) or workload.origin,
        "use torch.where or torch.cond instead of if, and do not call .item() in the model"
        if isinstance(error, DataDependent)
        else "write this line with other operations",
    )


def _run_copy(workload: Workload, batch: tuple[Any, ...]) -> None:
    """Run the program on a copy of its model; not at all if the model cannot be copied."""
    try:
        model = copy.deepcopy(workload.model)
    except Exception:
        return
    workload.run(model, batch)


def raised_in_torch(error: Exception) -> bool:
    """Whether code of torch has raised an error, and not mpcompile or the user's program."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_TORCH)


def torchs_own(error: Exception, workload: Workload) -> NotOneGraph:
    """Return torch's own error behind the capture, in one sentence."""
    made = NotOneGraph(
        "the program cannot become one graph of forward and backward: "
        f"{type(error).__name__}: {first_line(error)}",
        user_position(error) or definition(workload.loss) or workload.origin,
        "compile it without whole=True, so that it runs in pieces",
    )
    made.__cause__ = error
    return made


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else "no message"


def user_position(error: BaseException) -> str | None:
    """Return ``file:line`` of the deepest frame outside torch and mpcompile, or None."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_foreign(frame.filename)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def definition(function: Callable[..., Any] | None) -> str | None:
    """Return ``file:line`` of a function's definition, or None."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else None
