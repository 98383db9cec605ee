"""``mpcompile schema``: the JSON schemas of the files that people write and keep."""

from __future__ import annotations

import json
import sys

from mpcompile.plan import plan
from mpcompile.settings import Settings


def schema(document: str | None) -> None:
    """Print the JSON schema of the settings, of a plan, or of both."""
    schemas = {"settings": Settings.model_json_schema(), "plan": plan.schema()}
    sys.stdout.write(json.dumps(schemas[document] if document else schemas, indent=1) + "\n")
