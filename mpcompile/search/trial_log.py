"""What the trials of a search came to, a line each in a file: to go on another day."""

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
    """What is searched, and by what.

    Attributes:
        version: of the format.
        asked: per name of something that decides what is found a word for it.
    """

    kind: Literal["head"] = "head"
    version: Literal[1] = 1
    asked: dict[str, str]


class Suspect(_Line):
    """How wrong an op is where nothing is returned to FP32, over all its nodes and batches.

    Attributes:
        op: its id.
        suspicion: how much speaks against it; what only rounds has 0.
        error: the largest error of a tensor of its.
        own: the largest part of such an error that is the op's own doing.
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
    """What the program scores in FP32."""

    kind: Literal["reference"] = "reference"
    score: float


class Trial(_Line):
    """One trial.

    Attributes:
        full: the ops that were FP32.
        holds: whether what was asked for held.
        why: what was measured.
        seconds: what it took.
    """

    kind: Literal["trial"] = "trial"
    full: Annotated[tuple[str, ...], Field(strict=False)]
    holds: bool
    why: str
    seconds: _Size


Line = Annotated[Head | Suspects | Reference | Trial, Field(discriminator="kind")]


class TrialLog:
    """A file of trials, and what it holds.

    Attributes:
        path: the file.
        trials: by the ops that were FP32.
        suspects: None until they are known.
        reference: what FP32 scores; None until it is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: dict[frozenset[str], Trial] = {}
        self.suspects: tuple[Suspect, ...] | None = None
        self.reference: float | None = None

    @staticmethod
    def begin(path: Path, asked: Mapping[str, str]) -> TrialLog:
        """Start a file, in the place of what is there."""
        path.write_text("", encoding="utf-8")
        log = TrialLog(path)
        log.note(Head(asked=dict(asked)))
        return log

    @staticmethod
    def resume(path: Path, asked: Mapping[str, str]) -> TrialLog:
        """Take up a file that may come from anyone; a last line that breaks off is dropped.

        Args:
            path: the file.
            asked: what is searched now; see `Head`.

        Raises:
            BadInput: it is no such file, or something else was searched.
        """
        text = read_document(path, "file of trials", _AGAIN)
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            return TrialLog.begin(path, asked)
        first, *lines = (
            _read(line, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), 1)
        )
        if not isinstance(first, Head):
            raise BadInput("the first line is no head", str(path), _AGAIN)
        _check(first.asked, asked, path)
        log = TrialLog(path)
        for line in lines:
            log.take(line)
        if len(whole) < len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        return log

    def note(self, line: Head | Suspects | Reference | Trial) -> None:
        """Take something in, and write it to the file before anything else is done."""
        self.take(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_format().dump_json(line).decode() + "\n")

    def take(self, line: Head | Suspects | Reference | Trial) -> None:
        """Take in what the file holds already."""
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
        raise BadInput(f"this is no line of trials: {sentence(error)}", where, _AGAIN) from error


def _check(then: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    """Raise BadInput if two searches are not the same."""
    said = [
        f"{name} is {short(then.get(name, ''))} there and {short(now.get(name, ''))} here"
        for name in dict.fromkeys((*now, *then))
        if then.get(name) != now.get(name)
    ]
    if said:
        raise BadInput(
            "these trials are of another search: " + "; ".join(said),
            str(path),
            f"give what was given then, or {_AGAIN}",
        )


@cache
def _format() -> TypeAdapter[Head | Suspects | Reference | Trial]:
    return TypeAdapter(Line, config=ConfigDict(ser_json_inf_nan="constants"))
