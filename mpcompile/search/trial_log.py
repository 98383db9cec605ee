"""The results of a search's trials, one line each in a file, so that the search can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mpcompile.errors import BadInput
from mpcompile.validation import read_document, sentence, short

_AGAIN = "start again with --force and without --resume"
_Size = Annotated[float, Field(ge=0)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Head(_Line):
    """The inputs of a search.

    Attributes:
        version: the version of the format.
        asked: a short text for everything that decides the result, by name.
    """

    kind: Literal["head"] = "head"
    version: Literal[1] = 1
    asked: dict[str, str]


class Suspect(_Line):
    """The errors of an op while no op is returned to FP32, over all its nodes and batches.

    Attributes:
        op: its id.
        suspicion: the evidence against it; 0 for an op that only rounds.
        error: the largest error of its tensors.
        own: the largest error that the op itself adds to a tensor.
        vanished: the largest share of numbers that are zero, but not in FP64.
    """

    op: str
    suspicion: _Size
    error: _Size
    own: _Size
    vanished: _Size


class Suspects(_Line):
    """Every op that could be returned, the most suspicious first."""

    kind: Literal["suspects"] = "suspects"
    suspects: Annotated[tuple[Suspect, ...], Field(strict=False)]


class Reference(_Line):
    """The program's score in FP32."""

    kind: Literal["reference"] = "reference"
    score: float


class Trial(_Line):
    """One trial.

    Attributes:
        full: the ops that were in FP32.
        holds: whether the requirement held.
        why: the measurement in words.
        seconds: the duration.
    """

    kind: Literal["trial"] = "trial"
    full: Annotated[tuple[str, ...], Field(strict=False)]
    holds: bool
    why: str
    seconds: _Size


Line = Annotated[Head | Suspects | Reference | Trial, Field(discriminator="kind")]


class TrialLog:
    """A file of trials, and its contents.

    Attributes:
        path: the file.
        trials: the trials by the ops that were in FP32.
        suspects: None until they are known.
        reference: the score of FP32; None until it is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: dict[frozenset[str], Trial] = {}
        self.suspects: tuple[Suspect, ...] | None = None
        self.reference: float | None = None

    @staticmethod
    def begin(path: Path, asked: Mapping[str, str]) -> TrialLog:
        """Start a new file, which replaces an old one."""
        path.write_text("", encoding="utf-8")
        log = TrialLog(path)
        log.note(Head(asked=dict(asked)))
        return log

    @staticmethod
    def resume(path: Path, asked: Mapping[str, str]) -> TrialLog:
        """Resume from a file that is not trusted; an incomplete last line is dropped.

        Args:
            path: the file.
            asked: the inputs of the present search; see `Head`.

        Raises:
            BadInput: the file is not a file of trials, or belongs to another search.
        """
        text = read_document(path, "file of trials", _AGAIN)
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            return TrialLog.begin(path, asked)
        first, *lines = (
            _read(line, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), 1)
        )
        if not isinstance(first, Head):
            raise BadInput("the first line does not describe a search", str(path), _AGAIN)
        _check(first.asked, asked, path)
        log = TrialLog(path)
        for line in lines:
            log.take(line)
        if len(whole) < len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        return log

    def note(self, line: Head | Suspects | Reference | Trial) -> None:
        """Add a line, and write it to the file at once."""
        self.take(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_format().dump_json(line).decode() + "\n")

    def take(self, line: Head | Suspects | Reference | Trial) -> None:
        """Add a line that the file holds already."""
        match line:
            case Suspects():
                self.suspects = line.suspects
            case Reference():
                self.reference = line.score
            case Trial():
                self.trials[frozenset(line.full)] = line


def _read(line: bytes, where: str) -> Head | Suspects | Reference | Trial:
    try:
        return _format().validate_json(line)
    except ValidationError as error:
        what = f"this is not a line of trials: {sentence(error)}"
        raise BadInput(what, where, _AGAIN) from error


def _check(then: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    """Raise BadInput if two searches differ."""
    said = [
        f"{name} is {short(then.get(name, ''))} in the file and {short(now.get(name, ''))} in "
        "this search"
        for name in dict.fromkeys((*now, *then))
        if then.get(name) != now.get(name)
    ]
    if said:
        raise BadInput(
            "the trials belong to another search: " + "; ".join(said),
            str(path),
            f"repeat the arguments of that search, or {_AGAIN}",
        )


@cache
def _format() -> TypeAdapter[Head | Suspects | Reference | Trial]:
    return TypeAdapter(Line, config=ConfigDict(ser_json_inf_nan="constants"))
