"""The commands that only read documents: no torch, nothing executed."""

from __future__ import annotations

import json
import sys

from mpcompile.plan import plan
from mpcompile.settings import Settings

SAME, DIFFERENT = 0, 1
"""Exit codes of a comparison."""


def schema(document: str | None) -> None:
    """``mpcompile schema``: print the JSON schema of the settings, of a plan, or of both."""
    schemas = {"settings": Settings.model_json_schema(), "plan": plan.schema()}
    sys.stdout.write(json.dumps(schemas[document] if document else schemas, indent=1) + "\n")
