"""A project's settings: ``[tool.mpcompile]`` in ``pyproject.toml``, and the flags that win."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from mpcompile.errors import BadInput
from mpcompile.plan.policy import Level, Policy
from mpcompile.precision import Precision
from mpcompile.step.loss_scale import LossScale
from mpcompile.validation import sentence

TABLE = "tool.mpcompile"
_PRECISIONS = {"fp16": Precision.FP16, "bf16": Precision.BF16, "fp32": Precision.FP32}
_LISTS = ("full", "half", "free")


def _patterns(what: str) -> Any:
    return Field(strict=False, description=f"Ops, modules or nodes {what}.")


def _rules(what: str) -> Any:
    return Field(strict=False, description=f"Rules of lint {what}: MP201, MP1 or ALL.")


class LintSettings(BaseModel):
    """The selection of findings that ``mpcompile lint`` shows."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    select: Annotated[tuple[str, ...], _rules("to apply")] = ("ALL",)
    ignore: Annotated[tuple[str, ...], _rules("to leave out")] = ()
    per_module_ignores: Annotated[
        dict[str, Annotated[tuple[str, ...], Field(strict=False)]],
        Field(description="For each pattern of module paths, the rules to leave out there."),
    ] = {}


class Settings(BaseModel):
    """The defaults for how a program is transformed and run."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    level: Annotated[
        Level, Field(strict=False, description="How many tensors are stored in 16 bits.")
    ] = Level.PAPER
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"],
        Field(description="The 16-bit format; fp32 keeps the program unchanged."),
    ] = "fp16"
    full: Annotated[tuple[str, ...], _patterns("that stay in FP32")] = ()
    half: Annotated[tuple[str, ...], _patterns("that run in 16 bits")] = ()
    free: Annotated[tuple[str, ...], _patterns("whose precision the planner may choose")] = ()
    precision_budget: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description=(
                "With measured ranges: the largest error of what reads a 16-bit tensor; default: "
                "0.0039 for FP16."
            ),
        ),
    ] = None
    loss_scale: Annotated[
        str | float,
        Field(
            description=(
                "The loss scale: auto, dynamic, none, or a number; default: auto with fp16, "
                "else none."
            )
        ),
    ] = ""
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Field(description="What runs the step; default: inductor on CUDA, interpreter elsewhere."),
    ] = None
    without: Annotated[
        tuple[str, ...], Field(strict=False, description="Optional passes to leave out.")
    ] = ()
    lint: Annotated[LintSettings, Field(description="The rules of `mpcompile lint`.")] = (
        LintSettings()
    )

    @field_validator("loss_scale", mode="before")
    @classmethod
    def _known_scale(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise PydanticCustomError("scale", "Input should be auto, dynamic, none or a number")
        if value in ("", "auto", "dynamic", "none"):
            return value
        try:
            return LossScale.static(float(value)).initial
        except (ValueError, OverflowError, BadInput):
            raise PydanticCustomError(
                "scale", "Input should be auto, dynamic, none or a number above 0"
            ) from None

    @property
    def policy(self) -> Policy:
        """The policy of these settings."""
        return Policy(self.level, _PRECISIONS[self.precision], self.full, self.half, self.free)

    @property
    def scale(self) -> LossScale | None:
        """The loss scale of these settings; None: the precision decides."""
        if isinstance(self.loss_scale, float):
            return LossScale.static(self.loss_scale)
        rules = {
            "": None,
            "auto": LossScale.auto(),
            "dynamic": LossScale(),
            "none": LossScale.none(),
        }
        return rules[self.loss_scale]

    def over(self, flags: dict[str, Any]) -> Settings:
        """Return these settings with a command's flags applied.

        A flag replaces a setting. Patterns of flags are added to those of the settings; a pattern
        that is in both counts as the flag's. Passes to leave out are added too.

        Raises:
            BadInput: a flag has an invalid value.
        """
        named = {pattern for name in _LISTS for pattern in flags.get(name, ())}
        lists = {
            name: tuple(pattern for pattern in getattr(self, name) if pattern not in named)
            + tuple(flags.get(name, ()))
            for name in _LISTS
        }
        lists["without"] = (*self.without, *flags.get("without", ()))
        return check_settings({**self.model_dump(), **flags, **lists}, "the command line")


def find_settings(folder: Path) -> Settings:
    """Read ``[tool.mpcompile]`` of the nearest ``pyproject.toml``, from a folder upwards.

    Without such a file, or without that table in it, all settings have their defaults.

    Raises:
        BadInput: the file is not TOML, or the table has an unknown key or an invalid value.
    """
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        if path.is_file():
            return check_settings(_table(path), f"{path}: [{TABLE}]")
    return Settings()


def read_settings(path: Path) -> Settings:
    """Read ``[tool.mpcompile]`` of a file; see `find_settings` for its errors."""
    if not path.is_file():
        raise BadInput("there is no such file", str(path), f"give a .toml with [{TABLE}]")
    return check_settings(_table(path), f"{path}: [{TABLE}]")


def _table(path: Path) -> object:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise BadInput(f"this is not TOML ({error})", str(path), "correct that line") from error
    tools = document.get("tool", {})
    return tools.get("mpcompile", {}) if isinstance(tools, dict) else {}


def check_settings(values: object, where: str) -> Settings:
    """Return the settings in a document or dict; raise BadInput with its source if invalid."""
    known = Settings.model_fields
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise BadInput(
            sentence(error, known), where, f"the settings are {', '.join(known)}"
        ) from error
