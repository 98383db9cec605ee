"""``mpcompile diff``: changes between two plans, programs, models or policies."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from mpcompile import commands
from mpcompile.artifacts import write_json
from mpcompile.errors import BadInput, did_you_mean, printable
from mpcompile.options import DiffOptions
from mpcompile.plan.diff import in_words, plan_diff
from mpcompile.plan.plan import Plan, read_plan
from mpcompile.plan.policy import Level
from mpcompile.settings import Settings, find_settings, read_settings
from mpcompile.show.view import PLAN

SAME, DIFFERENT = 0, 1
"""Exit codes of a comparison."""


def diff(old: str, new: str, options: DiffOptions) -> int:
    """Print the changes between two sides; return 0 if there are none, else 1.

    Args:
        old: a plan.json, a folder that mpcompile has written, a program or an ``.onnx`` file; the
            last two are planned, with the settings of this folder or those after an ``@``: a level
            or a ``.toml`` file with ``[tool.mpcompile]``.
        new: the other side.
        options: where the document is written.

    Raises:
        BadInput: a side is none of these.
    """
    console = Console(stderr=True, highlight=False)
    found = plan_diff(_plan_of(old, console), _plan_of(new, console), old, new)
    people = sys.stderr if options.json == "-" else sys.stdout
    people.writelines(f"{printable(line)}\n" for line in in_words(found))
    write_json(options.json, found.to_dict())
    return SAME if found.same else DIFFERENT


def _plan_of(side: str, console: Console) -> Plan:
    source, policy = side, ""
    if "@" in side and not Path(side).exists():
        source, _, policy = side.rpartition("@")
    path = Path(source)
    if source.endswith(".json") or path.is_dir():
        if policy:
            raise BadInput(f"{source} already holds a plan", fix=f"leave out @{policy}")
        return read_plan(path / PLAN if path.is_dir() else path)
    settings = _settings(policy)
    # Two files of plans are compared without torch, which takes seconds to load.
    return commands.load_plan.load_plan(source, settings, console)


def _settings(policy: str) -> Settings:
    if policy.endswith(".toml"):
        return read_settings(Path(policy))
    settings = find_settings(Path.cwd())
    levels = [level.value for level in Level]
    if policy and policy not in levels:
        raise BadInput(
            f"there is no level {policy!r}{did_you_mean(policy, levels)}",
            fix=f"the levels are {', '.join(levels)}; or give a .toml file",
        )
    return settings.over({"level": policy}) if policy else settings
