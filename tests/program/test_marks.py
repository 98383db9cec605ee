"""The table of marks is true: who writes each, who reads each, and nobody uses their text."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from root import ROOT
from torch import fx

from mpcompile.program import marks
from mpcompile.program.marks import MARKS, NORM, PACKED, SLOT, TORCH, Mark

NAMES = {name: mark for name, mark in vars(marks).items() if isinstance(mark, Mark)}
READS, WRITES = {"get"}, {"setdefault", "discard", "move"}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removeprefix("mpcompile.")


SOURCES = {
    module_of(path): ast.parse(path.read_text())
    for folder in ("mpcompile", "passes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(ROOT / "mpcompile" / "passes")
    and module_of(path) not in ("program.marks", "passes.invariants")
}


def uses(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each use of a mark that the module imports: the mark's name and what is done."""
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mpcompile.program.marks"
        for alias in node.names
        if alias.name in NAMES
    }
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()) if name in imported:
                yield name, "write"
            case ast.Subscript(value=ast.Name(id=name)) if name in imported:
                yield name, "read"
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in imported:
                known = attribute in READS | WRITES
                yield name, ("write" if attribute in WRITES else "read") if known else attribute
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.Name(id=name)]):
                if name in imported:
                    yield name, "read"


def keys(tree: ast.Module) -> Iterator[str]:
    """Yield each text that the module uses as a key of a node's ``meta``."""

    def is_meta(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "meta"

    for node in ast.walk(tree):
        found: list[ast.AST | None] = []
        match node:
            case ast.Subscript(value=held, slice=key) if is_meta(held):
                found = [key]
            case ast.Call(func=ast.Attribute(value=held), args=[key, *_]) if is_meta(held):
                found = [key]
            case ast.Compare(left=key, comparators=[held]) if is_meta(held):
                found = [key]
            case ast.Assign(targets=[held], value=ast.Dict(keys=texts)) if is_meta(held):
                found = list(texts)
            case ast.Dict(keys=texts, values=values) if any(map(is_meta, values)):
                found = list(texts)
        yield from (
            key.value
            for key in found
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        )


@cache
def true_lists() -> dict[str, tuple[set[str], set[str]]]:
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for module, tree in SOURCES.items():
        for name, what in uses(tree):
            if what in ("write", "read"):
                found[name][what == "read"].add(module)
    return found


@cache
def by_key() -> dict[str, set[str]]:
    """Return who uses a mark's key in a dictionary that becomes a node's ``meta``, or was one."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in SOURCES.items():
        for name, what in uses(tree):
            if what not in ("write", "read"):
                assert what == "key", (module, name, what)
                found[name].add(module)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_writers_and_readers_of_a_mark_are_those_that_it_lists(name: str) -> None:
    writers, readers = true_lists()[name]
    mark, others = NAMES[name], by_key()[name]
    assert writers <= set(mark.writers) <= writers | others
    assert readers <= set(mark.readers) <= readers | others
    assert others <= {*mark.writers, *mark.readers}
    assert mark.writers == tuple(sorted(mark.writers))
    assert mark.readers == tuple(sorted(mark.readers))


def test_every_mark_is_in_the_list_once_and_is_written_and_read() -> None:
    assert list(NAMES.values()) == list(MARKS)
    assert len({mark.key for mark in MARKS}) == len(MARKS)
    assert not {mark.key for mark in MARKS} & TORCH.keys()
    assert all(mark.writers and mark.readers for mark in MARKS)


def test_only_keys_of_torch_are_used_by_their_text() -> None:
    found = {(key, module) for module, tree in SOURCES.items() for key in keys(tree)}
    assert not {pair for pair in found if pair[0] not in TORCH}
    assert {key for key, _ in found} == TORCH.keys()


def test_a_key_that_is_used_by_its_text_is_found() -> None:
    text = (
        "a = node.meta['one']; node.meta.get('two', 0); x = 'three' in call(n).meta\n"
        "b.meta['four'] = 1; c.meta = {**d.meta, 'five': 1}; e.meta = {'six': 1}\n"
        "f({**g.meta, 'seven': 1}); other['eight']"
    )
    assert sorted(keys(ast.parse(text))) == ["five", "five", "four", "one", "seven", "six", "three",
                                             "two"]  # fmt: skip


def test_a_mark_is_a_dictionary_of_nodes() -> None:
    graph = fx.Graph()
    one, two = graph.placeholder("one"), graph.placeholder("two")
    SLOT[one] = "batch"
    assert SLOT[one] == "batch"
    assert one.meta == {"slot": "batch"}
    assert one in SLOT
    assert two not in SLOT
    assert (SLOT.get(one, "none"), SLOT.get(two, "none"), SLOT.get(two)) == ("batch", "none", None)
    with pytest.raises(KeyError):
        SLOT[two]
    SLOT.setdefault(one, "other")
    SLOT.setdefault(two, "other")
    assert (SLOT[one], SLOT[two]) == ("batch", "other")
    SLOT.discard(two)
    SLOT.discard(two)
    assert two not in SLOT
    PACKED[one] = "arena0"
    PACKED.move(one, two)
    NORM.move(one, two)
    assert (PACKED.get(one), PACKED.get(two), NORM.get(two)) == (None, "arena0", None)
