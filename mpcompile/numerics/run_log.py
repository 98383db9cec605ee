"""The log of a run, one JSON object per step: loss, loss scale, and the cause of a skip."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError

from mpcompile.errors import BadInput
from mpcompile.validation import format_of, read_document, sentence

_AGAIN = "write it again with `mpcompile run`"
_LENIENT = ConfigDict(extra="ignore", strict=True)

_Step = Annotated[int, Field(ge=0, le=1 << 53)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class SkipCause:
    """The origin of the first number that was not finite.

    Attributes:
        node: the node of the step that made it.
        op: the op of the node.
        stage: ``forward`` or ``backward``.
        module: path of its module.
        file: the user's file; empty if not known.
        line: its line in that file.
        why: a sentence.
        gradients: names of the weights whose gradients were not finite.
        expected: whether the skip is part of the scaler's normal search for its scale.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    node: str
    op: str = ""
    stage: Literal["forward", "backward"] = "backward"
    module: str = ""
    file: str = ""
    line: int = 0
    why: str = ""
    gradients: tuple[str, ...] = ()
    expected: bool = False


@dataclass(frozen=True, slots=True)
class RunRow:
    """One step of a run.

    Attributes:
        step: the step's number.
        loss: the unscaled loss; None if it was not finite.
        scale: the loss scale of the step; None without loss scaling.
        skipped: whether no weight was written.
        cause: the cause of a skipped step, if it is known.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    step: _Step
    loss: _Finite | None = None
    scale: _Scale | None = None
    skipped: bool = False
    cause: SkipCause | None = None

    def to_json(self) -> str:
        """Return the row as one line; `read_run_log` reads it."""
        row = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(row | {"loss": self.loss}) + "\n"


def read_run_log(path: Path) -> tuple[RunRow, ...]:
    """Read the log of a run, which is not trusted, and which a run may still write.

    Unknown fields are ignored, and so is an incomplete last line.

    Raises:
        BadInput: a line is not a step.
    """
    lines = read_document(path, "run log", _AGAIN).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(format_of(RunRow).validate_json(line))
        except ValidationError as error:
            if number == len(lines):
                break
            what = f"this is not a log of a run: {sentence(error)}"
            raise BadInput(what, f"{path}:{number}", _AGAIN) from error
    return tuple(rows)
