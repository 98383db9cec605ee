"""Write a part of a step as a script that imports torch only and exits with 1 while it fails.

Text from a model is in comments, escaped, and in string literals only; identifiers have letters,
digits and underscores only. The first two lines have no text from a model, because Python looks for
the file's encoding in them.
"""

from __future__ import annotations

import builtins
import keyword
import linecache
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pprint import pformat
from typing import Any

import torch
from torch import fx

from mpcompile.errors import printable
from mpcompile.numerics.lockstep import EXACT, FULL, is_float, told
from mpcompile.plan.dataflow import Where
from mpcompile.program.capture import source_position
from mpcompile.program.casts import CAST
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import EMULATES, WHERE
from mpcompile.program.node_tensors import NARROW
from mpcompile.program.stack_lines import relative
from mpcompile.search.reduce import Reduced
from mpcompile.search.reduced_inputs import INLINE, Constant, Drawn, Source
from mpcompile.search.subgraph import between

_WIDTH, _SHOWN = 96, 60
_OWN = (
    "torch", "sys", "Path", "load_file", "HALF", "LIMIT", "inf", "nan", "held", "drawn", "inputs",
    "in_16_bits", "in_64_bits", "main",
)  # fmt: skip

_START = """\
# The smallest part of a training step that still fails in 16 bits, by `mpcompile reduce`.
# Run it with python: it exits with 1 while the failure shows, with 0 once it is gone.
#
"""

_DRAWN = """

def drawn(seed, shape, mean, deviation, dtype):
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (normal * deviation + mean).to(dtype)
"""

_MAIN = """

def main():
    ours, exact = in_16_bits(*inputs()), in_64_bits(*inputs())
    finite = exact.isfinite()
    bad = int((~ours.isfinite() & finite).sum())
    zeros = int(((ours == 0) & (exact != 0)).sum())
    wrong = (ours.double() - exact).where(finite, 0.0).norm()
    size = exact.where(finite, 0.0).norm()
    error = inf if bad else float(wrong / size) if wrong else 0.0
    fails = error > LIMIT or bad > 0
    print("in 16 bits:", ours)
    print("in FP64:", exact)
    print(f"not finite, but finite in FP64: {bad} of {ours.numel()}")
    print(f"zero, but not in FP64: {zeros} of {ours.numel()}")
    print(f"relative error against FP64: {error:.4g}; the limit is {LIMIT:.4g}")
    print("FAILS" if fails else "does not fail")
    sys.exit(1 if fails else 0)


if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class ReducedProgram:
    """A script and its tensors.

    Attributes:
        text: the text of the script.
        tensors: the tensors that it reads from a safetensors file beside it; may be empty.
    """

    text: str
    tensors: dict[str, torch.Tensor]


def program(reduced: Reduced, about: Sequence[str], data: str) -> ReducedProgram:
    """Write a part of a step as a script.

    Args:
        reduced: the part.
        about: lines for the head of the script, any text.
        data: name of the safetensors file beside the script, if it needs one.
    """
    name = _Names()
    given = {node: name(node) for node in reduced.inputs}
    half = next((d for d in map(_dtype, reduced.outcome.ours.values()) if d in NARROW), NARROW[0])
    literal = _Literal(half)
    lines: list[str] = []
    tensors: dict[str, torch.Tensor] = {}
    for node, source in reduced.inputs.items():
        where = _comment(source.value, _where(reduced.captured.node(node)))
        lines += [
            f"    # {where}{_how(source)}",
            f"    {given[node]} = {literal.input(given[node], source)}",
        ]
        if _is_held(source):
            tensors[given[node]] = source.value.detach().cpu().contiguous()
    ours = [f"    {line}" for line in _ours(reduced, name, literal)]
    exact = [f"    {line}" for line in _exact(reduced, name)]
    result = f"    return {name(reduced.captured.target.name)}"
    listed = ", ".join(given.values())
    parts = [
        _START + "".join(f"# {printable(line)}\n" for line in about),
        _imports(bool(tensors), data),
        f"HALF = {half}  # with torch.float32 here the script runs without 16 bits\n",
        f"LIMIT = {reduced.limit!r}  # an error over this is a failure\n",
        _DRAWN if any(isinstance(source.made, Drawn) for source in reduced.inputs.values()) else "",
        "\n\ndef inputs():\n" + "\n".join([*lines, f"    return [{listed}]"]) + "\n",
        f"\n\ndef in_16_bits({listed}):\n" + "\n".join([*ours, result]) + "\n",
        f"\n\ndef in_64_bits({listed}):\n" + "\n".join([*exact, result]) + "\n",
        _MAIN,
    ]
    return ReducedProgram("".join(parts), tensors)


def _imports(held: bool, data: str) -> str:
    lines = ["", "import sys", *(["from pathlib import Path"] if held else []), ""]
    lines += ["import torch", *(["from safetensors.torch import load_file"] if held else []), ""]
    lines += [f"held = load_file(Path(__file__).with_name({data!a}))"] if held else []
    return "\n".join([*lines, 'inf, nan = float("inf"), float("nan")', ""])


def _ours(reduced: Reduced, name: _Names, literal: _Literal) -> Iterator[str]:
    """Yield the lines of the step's arithmetic, with the casts that widen or round."""
    captured, values = reduced.captured, reduced.outcome.ours
    given = {captured.rounded[node]: name(node) for node in reduced.inputs}
    text: dict[fx.Node, str] = dict(given)
    for node in between(captured.rounded[captured.target.name], given):
        emulates = EMULATES.get(node, node.name)
        called = literal.call(node, node.args, node.kwargs, text.__getitem__)
        if emulates and emulates != node.name:
            called = f"{text[node.all_input_nodes[0]]}.to({literal(node.kwargs['dtype'])})"
        elif not emulates and node.target is CAST:
            called = f"{text[node.all_input_nodes[0]]}.float()"
        if not emulates:
            text[node] = called
            continue
        text[node] = name(emulates)
        yield f"# {_comment(values[node], _where(node))}"
        yield f"{text[node]} = {called}"


def _exact(reduced: Reduced, name: _Names) -> Iterator[str]:
    """Yield the lines of the same part in FP64."""
    outcome, captured = reduced.outcome, reduced.captured
    given = {captured.node(node): name(node) for node in reduced.inputs}
    for node, text in given.items():
        if is_float(reduced.inputs[node.name].value):
            yield f"{text} = {text}.double()"
    for node in between(captured.target, given):
        narrow = node in outcome.narrower
        args, kwargs = told(node, FULL if narrow else EXACT)

        def read(item: fx.Node, narrow: bool = narrow) -> str:
            wide = narrow and is_float(outcome.exact[item])
            return f"{name(item.name)}.float()" if wide else name(item.name)

        called = _EXACT_LITERAL.call(node, args, kwargs, read)
        source = node.all_input_nodes[0] if node.target is operator.getitem else node
        if source in outcome.narrower and is_float(outcome.exact[node]):
            called = f"{called}.double()"
        yield f"{name(node.name)} = {called}"


class _Names:
    """A map from each node to an identifier of its own."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *_OWN}

    def __call__(self, node: str) -> str:
        if node not in self._given:
            plain = re.sub(r"[^0-9A-Za-z_]", "_", node).lstrip("_") or "node"
            plain = f"n{plain}" if plain[0].isdigit() else plain
            name, count = plain, 1
            while name in self._taken:
                name, count = f"{plain}_{count}", count + 1
            self._taken.add(name)
            self._given[node] = name
        return self._given[node]


@dataclass(frozen=True)
class _Literal:
    """A writer of arguments as Python.

    Attributes:
        half: the 16-bit dtype that is written ``HALF``.
    """

    half: torch.dtype | None

    def __call__(self, value: Any, read: Callable[[fx.Node], str] | None = None) -> str:
        if isinstance(value, fx.Node):
            assert read is not None
            return read(value)
        if isinstance(value, list | tuple):
            return f"[{', '.join(self(item, read) for item in value)}]"
        if isinstance(value, torch.dtype):
            return "HALF" if value is self.half else str(value)
        if isinstance(value, torch.device):
            return ascii(str(value))
        if isinstance(value, torch.layout | torch.memory_format):
            return str(value)
        if isinstance(value, str | int | float | complex | None):
            return ascii(value)
        raise AssertionError(type(value))  # `subgraph.obstacle` refuses all other types

    def call(self, node: fx.Node, args: Any, kwargs: Any, read: Callable[[fx.Node], str]) -> str:
        """Write a call."""
        given = [self(item, read) for item in args]
        if node.target is operator.getitem:
            return f"{given[0]}[{given[1]}]"
        given += [f"{key}={self(item, read)}" for key, item in kwargs.items()]
        return f"torch.ops.{node.target}({', '.join(given)})"

    def input(self, name: str, source: Source) -> str:
        """Write the expression of an input."""
        value, made = source.value, source.made
        if not isinstance(value, torch.Tensor):
            return self(value)
        shape, dtype = self(list(value.shape)), self(value.dtype)
        if isinstance(made, Constant):
            text = f"torch.full({shape}, {self(made.number)}, dtype={dtype})"
        elif isinstance(made, Drawn):
            numbers = f"{made.seed}, {shape}, {made.mean!r}, {made.deviation!r}"
            text = f"drawn({numbers}, {dtype})"
        elif not value.numel():
            text = f"torch.empty({shape}, dtype={dtype})"
        elif _is_held(source):
            text = f"held[{name!a}].to({dtype})"
        else:
            numbers = pformat(value.tolist(), width=_WIDTH, compact=True)
            text = f"torch.tensor({numbers}, dtype={dtype})"
        if made is None and not value.is_contiguous():
            empty = f"torch.empty_strided({shape}, {self(list(value.stride()))}, dtype={dtype})"
            text = f"{empty}.copy_({text})"
        return text if value.device.type == "cpu" else f"{text}.to({self(value.device)})"


_EXACT_LITERAL = _Literal(None)


def _is_held(source: Source) -> bool:
    """Whether an input is stored in the file beside the script."""
    value = source.value
    return isinstance(value, torch.Tensor) and source.made is None and value.numel() > INLINE


def _dtype(value: object) -> torch.dtype | None:
    return value.dtype if isinstance(value, torch.Tensor) else None


def _where(node: fx.Node) -> Where:
    where: Where = WHERE.get(node) or source_position(node)
    return where


def _comment(value: object, where: Where) -> str:
    """Return type, source position and source line as one line of a comment."""
    parts = [type_text(value)]
    if where.file:
        source = linecache.getline(where.file, where.line).strip()[:_SHOWN]
        parts += [f"{relative(where.file)}:{where.line}", *([source] if source else [])]
    return printable("  ".join([*parts, *([f"module {where.module}"] if where.module else [])]))


def _how(source: Source) -> str:
    if source.made is None:
        return ""
    return ", all numbers equal" if isinstance(source.made, Constant) else ", random numbers"
