"""The measurements of a check per node: its error against a reference, and its loss in FP16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from mpcompile.validation import read_document, read_json

_AGAIN = "write it again with `mpcompile check`"
_LENIENT = ConfigDict(extra="ignore", strict=True)

_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Bits = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class CheckedNode:
    """The measurements of one node.

    Attributes:
        id: the node in the view.
        error: the error of mpcompile, relative to the reference; None if it is unknown.
        autocast: the error of autocast at the same node; None if there is none.
        headroom_bits: bits from the largest magnitude to FP16's largest; None without numbers.
        zeros: share of the numbers that became zero.
        subnormals: share of the numbers that are subnormal in FP16.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    id: str
    error: _Error | None = None
    autocast: _Error | None = None
    headroom_bits: _Bits | None = None
    zeros: _Share = 0.0
    subnormals: _Share = 0.0


@dataclass(frozen=True, slots=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    version: Literal[1]
    reference: str
    rows: tuple[CheckedNode, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """The measurements of a check.

    Attributes:
        reference: the reference of the errors, such as ``fp64``.
        nodes: by id.
    """

    reference: str
    nodes: Mapping[str, CheckedNode]


def read_check(path: Path) -> Check:
    """Read the untrusted file of a check; unknown fields are ignored.

    Raises:
        BadInput: the file is not such a document.
    """
    text = read_document(path, "check.json", _AGAIN)
    file = read_json(_File, text, "this is not a check", str(path), _AGAIN)
    return Check(file.reference, {row.id: row for row in file.rows})
