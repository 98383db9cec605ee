"""``mpcompile diff``: what changed between two plans, programs, models or policies."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.schema import DIFFERENT, SAME
from mpcompile.errors import BadInput, did_you_mean, printable
from mpcompile.plan.diff import in_words, plan_diff
from mpcompile.plan.plan import Plan, read_plan
from mpcompile.plan.policy import Level
from mpcompile.settings import Settings, find_settings, read_settings
from mpcompile.show.view import PLAN


def diff(old: str, new: str, json_to: str | None) -> int:
    """Print what changed between two sides; return 0 if nothing did, else 1.

    Args:
        old: a plan.json, a folder that mpcompile has written, a program or an ``.onnx`` file; the
            last two are planned, by the settings here or by what stands behind an ``@``: a level,
            or a ``.toml`` file with ``[tool.mpcompile]``.
        new: another.
        json_to: where the document goes.

    Raises:
        BadInput: a side is none of these.
    """
    console = Console(stderr=True, highlight=False)
    found = plan_diff(_plan_of(old, console), _plan_of(new, console), old, new)
    people = sys.stderr if json_to == "-" else sys.stdout
    people.writelines(f"{printable(line)}\n" for line in in_words(found))
    write_json(json_to, found.to_dict())
    return SAME if found.same else DIFFERENT


def _plan_of(side: str, console: Console) -> Plan:
    source, policy = side, ""
    if "@" in side and not Path(side).exists():
        source, _, policy = side.rpartition("@")
    path = Path(source)
    if source.endswith(".json") or path.is_dir():
        if policy:
            raise BadInput(f"{source} is planned already", fix=f"leave out @{policy}")
        return read_plan(path / PLAN if path.is_dir() else path)
    settings = _settings(policy)
    # Two files of plans are compared without torch, which takes seconds to load.
    made: Plan = import_module("mpcompile.commands.load_plan").plan_source(
        source, settings, console
    )
    return made


def _settings(policy: str) -> Settings:
    if policy.endswith(".toml"):
        return read_settings(Path(policy))
    settings = find_settings(Path.cwd())
    levels = [level.value for level in Level]
    if policy and policy not in levels:
        raise BadInput(
            f"there is no level {policy!r}{did_you_mean(policy, levels)}",
            fix=f"the levels are {', '.join(levels)}; or name a .toml file",
        )
    return settings.over({"level": policy}) if policy else settings
