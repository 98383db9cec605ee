"""Python numbers whose arithmetic is recorded in a graph.

The interface of the object behind a `torch.SymFloat` is not public. Checked on the versions of
`mpcompile.torch_private.versions`.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from mpcompile.program.numbers.formulas import Formula, Guard, Known, evaluate
from mpcompile.torch_private.tracing import DataDependent

Tensors: TypeAlias = dict[str, torch.Tensor]

# Each branch doubles the number of sides that are computed.
_MOST_BRANCHES = 6

TAKE_TENSORS = frozenset(
    ["add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp", "pow", "clamp", "full", "full_like",
     "scalar_tensor", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge"]
)  # fmt: skip
"""Ops whose number may also be a 0-d tensor (`mpcompile.passes.lowering.numbers_to_tensors`)."""


def truediv(left: float, right: float) -> float:
    """Divide as in IEEE 754 and on an accelerator, also by zero.

    Both sides of a branch are computed, so arithmetic must not fail on the side that is unused.
    """
    try:
        return left / right
    except ZeroDivisionError:
        if left == 0 or math.isnan(left):
            return math.nan
        return math.copysign(math.inf, left) * math.copysign(1.0, right)


def power(base: float, exponent: float) -> float:
    """Return a power as in IEEE 754: NaN for a root of a negative number."""
    try:
        result = base**exponent
    except (ZeroDivisionError, OverflowError):
        return math.copysign(math.inf, base if exponent % 2 == 1 else 1.0)
    return math.nan if isinstance(result, complex) else result


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": truediv,
    "pow": power,
    "neg": operator.neg,
}


class Numbers:
    """The known numbers of one recording, and the results of branches on them.

    The present values of options decide a branch that depends on options alone, and add a guard.
    For a branch on a number that was read from a tensor, both sides are recorded (`explore`).

    Attributes:
        guards: the branches on options.
    """

    def __init__(self) -> None:
        self.guards: list[Guard] = []
        self._options: dict[str, float] = {}
        self._path: _Path | None = None

    def option(self, number: torch.SymFloat, name: str, value: float) -> torch.SymFloat:
        """Return a number that was read from an input as an option whose value is known."""
        self._options[name] = value
        return torch.SymFloat(_Number(self, number.node.graph, number.node.value, name))

    def explore(self, run: Callable[[], Tensors], answers: tuple[bool, ...] = ()) -> Tensors:
        """Run a function once for each path through its branches; select between the results.

        Args:
            run: does the same each time, except at its branches; its results have the same names
                and shapes on all sides.
            answers: the results of the first branches.

        Raises:
            DataDependent: there are too many branches.
        """
        self._path = path = _Path(answers)
        try:
            results = run()
        finally:
            self._path = None
        if len(path.asked) > _MOST_BRANCHES:
            raise DataDependent("many comparisons of numbers read from tensors")
        for index in reversed(range(len(answers), len(path.asked))):
            other = self.explore(run, (*answers, *[True] * (index - len(answers)), False))
            device = next(iter(results.values())).device
            chosen = tensor_of(path.asked[index], torch.float32, device) > 0
            results = {k: torch.where(chosen, value, other[k]) for k, value in results.items()}
        return results

    def decide(self, condition: _Comparison) -> bool:
        """Answer a branch."""
        if condition.known is not None:
            answer = bool(evaluate(condition.known, self._options))
            self.guards.append(Guard(condition.known, answer))
            return answer
        if self._path is None:
            raise DataDependent("a comparison of a number read from a tensor")
        return self._path.answer(condition.as_number())

    def constant(self, number: _Number) -> float:
        """Return the value of a number if Python needs it."""
        if number.known is None:
            raise DataDependent("a number read from a tensor")
        value = float(evaluate(number.known, self._options))
        self.guards.append(Guard(Formula(operator.eq, (number.known, value)), True))
        return value


class _Path:
    """One path through the branches: the results of the first ones; all later ones are true."""

    def __init__(self, answers: tuple[bool, ...]) -> None:
        self.answers = answers
        self.asked: list[torch.SymFloat] = []

    def answer(self, condition: torch.SymFloat) -> bool:
        index = len(self.asked)
        self.asked.append(condition)
        return self.answers[index] if index < len(self.answers) else True


class _Number:
    """The object behind a `torch.SymFloat`: arithmetic on it makes nodes of a graph.

    torch calls the methods of such an object by the names of Python's operators and of a few of its
    own. `torch.fx.experimental.sym_node.SymNode` answers with sympy expressions, whose order of
    evaluation is not the program's.
    """

    def __init__(
        self, numbers: Numbers, graph: fx.Graph, value: fx.Node | float, known: Known | None
    ) -> None:
        self.numbers = numbers
        self.graph = graph
        self.value = value
        self.known = known

    def is_float(self) -> bool:
        return True

    def is_int(self) -> bool:
        return False

    is_bool = is_constant = is_nested_int = is_int

    def wrap_float(self, number: float) -> _Number:
        return _Number(self.numbers, self.graph, number, number)

    wrap_int = wrap_float

    def guard_float(self, file: str, line: int) -> float:
        del file, line
        return self.numbers.constant(self)

    def bool_(self) -> bool:
        return self.numbers.decide(_Comparison(operator.ne, self, self.wrap_float(0.0)))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ("eq", "ne", "lt", "le", "gt", "ge"):
            return lambda other: _Comparison(getattr(operator, name), self, other)
        name = name.removeprefix("float_")  # float_pow, float_truediv
        if name not in _OPERATORS:
            raise AttributeError(name)
        return lambda *others: self.call(_OPERATORS[name], *others)

    def call(self, target: Callable[..., Any], *others: _Number) -> _Number:
        node = self.graph.call_function(target, (self.value, *(item.value for item in others)))
        result = _Number(self.numbers, self.graph, node, _formula(target, self, *others))
        node.meta["val"] = torch.SymFloat(result)
        return result


def _formula(target: Callable[..., Any], *operands: _Number) -> Formula | None:
    known = tuple(item.known for item in operands if item.known is not None)
    return Formula(target, known) if len(known) == len(operands) else None


class _Comparison:
    """The object behind a `torch.SymBool`."""

    def __init__(self, target: Callable[..., Any], left: _Number, right: _Number) -> None:
        self.target = target
        self.left = left
        self.right = right
        self.known = _formula(target, left, right)

    def is_bool(self) -> bool:
        return True

    def is_int(self) -> bool:
        return False

    is_float = is_constant = is_int

    def expect_true(self, file: str, line: int) -> bool:
        """Accept the ``torch._check(number >= 0)`` in torch's own power."""
        del file, line
        return True

    def bool_(self) -> bool:
        return self.left.numbers.decide(self)

    def guard_bool(self, file: str, line: int) -> bool:
        del file, line
        return self.bool_()

    def as_number(self) -> torch.SymFloat:
        """Return 1 or 0 as a recorded number."""
        return torch.SymFloat(self.left.call(self.target, self.right))


def truth_of(numbers: Numbers, graph: fx.Graph, node: fx.Node) -> torch.SymBool:
    """Return a node's bool result as a Python bool; reading its value is a branch."""
    number = _Number(numbers, graph, node, None)
    return torch.SymBool(_Comparison(operator.ne, number, number.wrap_float(0.0)))


def number_of(numbers: Numbers, graph: fx.Graph, node: fx.Node) -> torch.SymFloat:
    """Return a node's result as a Python number; arithmetic on it is recorded in the graph."""
    return torch.SymFloat(_Number(numbers, graph, node, None))


def is_recorded(number: torch.SymFloat) -> bool:
    """Whether a number is one of `number_of`, not torch's own arithmetic on sizes."""
    return isinstance(number.node, _Number)


def node_of_number(number: torch.SymFloat) -> fx.Node | float:
    """Return the node that made a number of `number_of`."""
    value: fx.Node | float = number.node.value
    return value


def is_known(number: torch.SymFloat) -> bool:
    """Whether a number is computed from options and constants alone."""
    return number.node.known is not None


def tensor_of(number: torch.SymFloat, dtype: torch.dtype | None, device: Any) -> torch.Tensor:
    """Return a recorded number as a 0-d tensor, by default of torch's default dtype."""
    fill: Callable[..., torch.Tensor] = torch.full
    return fill((), number, dtype=dtype or torch.get_default_dtype(), device=device)


@contextmanager
def python_takes_numbers(kind: type) -> Iterator[None]:
    """Let ``min``, ``max`` and ``torch.as_tensor`` in the code of a class take recorded numbers.

    Python's own functions compare and then choose, which would be a branch; ``torch.as_tensor``
    needs a value. For this time the modules of the class and its bases get a ``min`` and a ``max``.
    """
    modules = {sys.modules[base.__module__] for base in kind.__mro__ if base is not object}
    patched = [(m, f) for m in modules for f in (max, min) if f.__name__ not in vars(m)]
    for module, extreme in patched:
        setattr(module, extreme.__name__, _on_numbers(extreme))
    try:
        with _TensorsOfNumbers():
            yield
    finally:
        for module, extreme in patched:
            delattr(module, extreme.__name__)


def _on_numbers(extreme: Callable[..., Any]) -> Callable[..., Any]:
    def of_two(left: Any, right: Any) -> torch.SymFloat:
        of = (left if isinstance(left, torch.SymFloat) else right).node
        first, second = (
            item.node if isinstance(item, torch.SymFloat) else of.wrap_float(item)
            for item in (left, right)
        )
        return torch.SymFloat(first.call(extreme, second))

    def choose(*values: Any, **options: Any) -> Any:
        numbers = any(isinstance(value, torch.SymFloat) for value in values)
        if numbers and not any(isinstance(value, torch.Tensor) for value in values):
            return reduce(of_two, values)
        return extreme(*values, **options)

    return choose


class _TensorsOfNumbers(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        made = func is torch.as_tensor or func is torch.tensor
        if made and args and isinstance(args[0], torch.SymFloat):
            return tensor_of(args[0], kwargs.get("dtype"), kwargs.get("device"))
        return func(*args, **kwargs)
