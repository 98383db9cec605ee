"""Rules of the house: sizes, names, pairs of pass and test, one place for private torch."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from root import ROOT

FOLDERS = ("mpcompile", "passes", "models", "bench", "tests")
# mpcompile/passes is a link to passes, whose files are looked at once.
SOURCES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(ROOT / "mpcompile" / "passes")
]
# Underscore names of torch's ATen ops, which are public API in this form.
ATEN = {
    "_to_copy",
    "_unsafe_view",
    "_assert_async",
    "_assert_scalar",
    "_local_scalar_dense",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_cudnn_rnn",
    "_cudnn_rnn_backward",
    "_cudnn_rnn_flatten_weight",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_passes_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_has_a_subject_and_says_it(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    if path.name != "__init__.py" or path.parent.name in ("mpcompile", "passes"):
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_folder_holds_more_than_25_modules() -> None:
    held = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {name_of(folder): n for folder, n in held.items() if n > 25} == {}


def test_every_room_says_what_enters_and_what_leaves() -> None:
    rooms = [path for path in (ROOT / "mpcompile").iterdir() if (path / "__init__.py").is_file()]
    for room in rooms:
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert ("In come" in text and "out come" in text) or "out go" in text, room.name


def test_every_pass_has_its_test_in_a_room_of_the_same_name() -> None:
    passes = {path.relative_to(ROOT / "passes") for path in (ROOT / "passes").glob("*/*.py")}
    tests = {
        path.relative_to(ROOT / "tests/passes").with_name(path.name.removeprefix("test_"))
        for path in (ROOT / "tests/passes").glob("*/test_*.py")
    }
    assert {path for path in passes if path.name != "__init__.py"} == tests


def test_functions_import_nothing_of_ours() -> None:
    """A local import hides what a module needs from its reader and from the linter of layers."""
    for path in SOURCES:
        if name_of(path).split("/")[0] not in ("mpcompile", "passes"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for node in ast.walk(function):
                named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Import):
                    named = [alias.name for alias in node.names]
                assert not any(name.split(".")[0] == "mpcompile" for name in named), name_of(path)


def test_passes_is_a_real_folder_behind_a_relative_link() -> None:
    assert (ROOT / "passes").is_dir()
    assert not (ROOT / "passes").is_symlink()
    assert (ROOT / "mpcompile/passes").readlink() == Path("../passes")


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if name_of(p).split("/")[0] in ("mpcompile", "passes")], ids=name_of
)
def test_private_torch_is_touched_in_one_room_only(path: Path) -> None:
    if path.parent.name == "torch_private":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            parts = (node.module or "").split(".") + [alias.name for alias in node.names]
            assert not any(part.startswith("_") for part in parts if part != "__future__"), parts
            assert "experimental" not in parts
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            whole = ast.unparse(node)
            private = whole.startswith(("torch.", "fx.")) or not whole.startswith(("self.", "cls."))
            public = node.attr in ATEN or whole == "os._exit"  # which Python documents
            assert public or node.attr.startswith("__") or not private, whole
