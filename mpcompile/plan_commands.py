"""The commands that only read documents: no torch, nothing executed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mpcompile import plan
from mpcompile.errors import BadInput
from mpcompile.precision import Precision
from mpcompile.settings import Settings

SAME, DIFFERENT = 0, 1
"""Exit codes of a comparison."""


def schema(document: str | None) -> None:
    """``mpcompile schema``: print the JSON schema of the settings, of a plan, or of both."""
    schemas = {"settings": Settings.model_json_schema(), "plan": plan.schema()}
    sys.stdout.write(json.dumps(schemas[document] if document else schemas, indent=1) + "\n")


def write_json(target: str | None, document: dict[str, Any]) -> None:
    """Write one JSON document to a file, to stdout with ``-``, or nowhere.

    Raises:
        BadInput: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(document, default=_value) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        try:
            Path(target).write_text(text, encoding="utf-8")
        except OSError as error:
            what = f"the JSON document cannot be written ({error.strerror})"
            raise BadInput(what, target, "choose another file") from error


def _value(precision: Precision) -> str:
    return precision.value
