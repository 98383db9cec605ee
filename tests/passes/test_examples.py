"""Each pass has an example of before and after in its docstring, which is what it does.

What examples are written with is in `programs.pass_examples`. A long line of a graph is broken.
"""

from __future__ import annotations

import doctest
import importlib
from types import ModuleType

import pytest
from programs import pass_examples
from root import ROOT

from mpcompile.passes.runner import pass_name

MODULES = [
    ".".join(("mpcompile", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted((ROOT / "passes").glob("*/*.py"))
    if path.name != "__init__.py"
]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    names = {**vars(pass_examples), **vars(module)}
    found = doctest.DocTestFinder(exclude_empty=True).find(module, globs=names)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_what_is_before_and_after_a_pass_is_what_its_docstring_says(name: str) -> None:
    module = importlib.import_module(name)
    examples = examples_of(module)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples:
        said: list[str] = []
        assert not runner.run(test, out=said.append).failed, "".join(said)
    subject = name.rpartition(".")[2]
    found = [test for test in examples if "before_and_after" in test.examples[-1].source]
    assert len(found) == 1, f"{name} needs one example in a docstring that ends in before_and_after"
    [example] = found
    assert pass_name(getattr(module, example.name.rpartition(".")[2])) == subject
    assert example.examples[-1].want.lstrip()


def test_an_example_that_is_wrong_fails() -> None:
    module = importlib.import_module(MODULES[0])
    [test] = examples_of(module)
    test.examples[-1].want = "+ something else\n"
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 1
