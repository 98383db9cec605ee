"""A command has one options class and one function of its name; its help needs no torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from mpcompile import commands, options
from mpcompile.cli.app import app

# The command without a name, `mpcompile model.py`, is "transform".
FUNCTIONS: dict[str, Any] = {
    "transform": app.default_command,
    **{name: app[name].default_command for name in app if not name.startswith("-")},
}
CLASSES = {name: f"{name.capitalize()}Options" for name in FUNCTIONS}


def test_every_options_class_belongs_to_a_command() -> None:
    assert sorted(options.__all__) == sorted(CLASSES.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_takes_its_options_class_and_hands_it_on(name: str) -> None:
    made: Any = getattr(options, CLASSES[name])
    assert is_dataclass(made)
    assert vars(made)["__dataclass_params__"].frozen
    hints = get_type_hints(FUNCTIONS[name])
    assert FUNCTIONS[name].__name__ == name
    assert [hint for hint in hints.values() if is_dataclass(hint)] == [made]
    work = getattr(getattr(commands, name), name)
    assert inspect.isfunction(work)
    assert work.__module__ == f"mpcompile.commands.{name}"
    taken = [hint for hint in get_type_hints(work).values() if hint in vars(options).values()]
    assert taken == ([] if name == "schema" else [made])


def test_type_checkers_see_the_files_that_are_loaded_on_first_use() -> None:
    """Without the import under ``TYPE_CHECKING`` a wrong call of a command is no error."""
    tree = ast.parse(inspect.getsource(commands))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [alias.name for node in block.body if isinstance(node, ast.ImportFrom)
            for alias in node.names]  # fmt: skip
    assert sorted(seen) == sorted(commands.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_flag_has_its_help(name: str) -> None:
    for item in fields(getattr(options, CLASSES[name])):
        hint = get_type_hints(getattr(options, CLASSES[name]), include_extras=True)[item.name]
        parameter = [note for note in getattr(hint, "__metadata__", ()) if note.help]
        assert parameter or is_dataclass(hint), item.name


def test_help_and_wrong_words_of_each_command_need_no_torch() -> None:
    named = [name for name in FUNCTIONS if name != "transform"]
    code = (
        "import sys\n"
        "from mpcompile.cli import exit_code\n"
        f"for words in [[], *([name] for name in {named!r})]:\n"
        "    assert exit_code([*words, '--help']) == 0, words\n"
        "    assert exit_code([*words, '--no-such-flag']) == 2, words\n"
        "    assert 'torch' not in sys.modules and 'pydantic' not in sys.modules, words\n"
        "for words in [['check'], ['run'], ['tune'], ['export', '--to', 'a.onnx'], []]:\n"
        "    assert exit_code([*words, 'model.py', '--ranges', 'nowhere.json']) == 2, words\n"
        "    assert exit_code([*words, 'model.py', '--margin', '3']) == 2, words\n"
        "    assert exit_code([*words, 'model.py', '--loss-scale', 'no']) == 2, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
