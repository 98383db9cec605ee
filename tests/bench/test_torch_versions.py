"""The row of a version of torch: what it says, and its place in the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from root import ROOT

from bench.robustness.torch_versions import HEAD, RULE, Counts, main, row_of, with_row

FACTS = {"torch": "2.14.1+cu130", "python": "3.11.7", "date": "2026-11-29T10:00", "commit": "abc"}
ROW = "| 2.14.1+cu130 | 1,200 | 1 | 20 | 25 | 3.11.7 | 2026-11-29 | abc |"
PAGE = f"# Title\n\n{HEAD}\n{RULE}\n| 2.9.0 | 1 |\n| 2.13.0+cpu | 2 |\n\nText | with a bar.\n"


def test_a_row_says_how_the_tests_ended() -> None:
    assert row_of(Counts(1200, 1, 20), 1500.0, FACTS) == ROW


def test_a_row_takes_the_place_of_its_version() -> None:
    page = with_row(PAGE, ROW)
    assert page.splitlines()[4:7] == ["| 2.9.0 | 1 |", "| 2.13.0+cpu | 2 |", ROW]
    assert with_row(page, ROW) == page
    again = with_row(page, "| 2.13.0 | 3 |")
    assert again.splitlines()[4:7] == ["| 2.9.0 | 1 |", "| 2.13.0 | 3 |", ROW]
    assert again.endswith("\n\nText | with a bar.\n")


def test_a_page_without_the_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="no table with the head"):
        with_row("# Title\n", ROW)


def test_the_page_of_the_project_has_the_table() -> None:
    assert ROW in with_row((ROOT / "docs/versions.md").read_text(), ROW)


def test_some_tests_are_counted_and_the_page_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_ends.py").write_text(
        "import pytest\n\n\n"
        "def test_one():\n    pass\n\n\n"
        "def test_two():\n    raise ValueError\n\n\n"
        "def test_three():\n    pytest.skip('so')\n\n\n"
        "@pytest.fixture\ndef broken():\n    raise ValueError\n\n\n"
        "def test_four(broken):\n    pass\n"
    )
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    code = main(["--page", str(page), f"--rootdir={tmp_path}", "-n", "0", str(tmp_path)])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2."))
    assert code == 1
    assert row.split(" | ")[1:4] == ["1", "2", "1"]
    assert page.read_text() == PAGE
