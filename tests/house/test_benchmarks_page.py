"""The page of benches names every program of bench/, and every command named anywhere exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from root import ROOT

PAGE = ROOT / "docs/benchmarks.md"
MODULES = sorted((ROOT / "bench").rglob("*.py"))
PROGRAMS = [path for path in MODULES if re.search(r"^if __name__ ==", path.read_text(), re.M)]
FOLDERS = sorted({path.parent for path in MODULES if path.name == "__init__.py"})
TEXTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
    ROOT / "bench/gpu.sh",
    *MODULES,
]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PROGRAMS, ids=dotted)
def test_a_program_is_in_the_table_of_its_folder(path: Path) -> None:
    _, _, section = PAGE.read_text().partition(f"\n## `{name_of(path.parent)}/`")
    rows = [row for row in section.partition("\n## ")[0].splitlines() if row.startswith("|")]
    assert any(re.search(rf"`[^`]*python -m {re.escape(dotted(path))}[ `]", row) for row in rows)


def test_a_module_with_a_main_function_can_be_run() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text())
        named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" not in named or path in PROGRAMS, name_of(path)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_a_bench_that_a_text_names_exists(path: Path) -> None:
    text = path.read_text()
    programs = {dotted(each) for each in PROGRAMS}
    assert set(re.findall(r"-m (bench(?:\.[a-z]\w*)+)", text)) <= programs
    assert all((ROOT / name).is_file() for name in re.findall(r"\bbench/[\w/]+\.(?:py|sh)", text))
    assert "python bench/" not in text


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_says_what_it_answers_and_the_page_has_it(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text
    assert f"\n## `{name_of(folder)}/`" in PAGE.read_text()


def test_every_folder_of_benches_is_a_package() -> None:
    assert {path.parent for path in MODULES} == set(FOLDERS)
