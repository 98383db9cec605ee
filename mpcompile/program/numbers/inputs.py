"""Capture a program so that some of its Python numbers are inputs of the graph.

While `torch.export` runs the program, an object that behaves as the number is in its place. Python
arithmetic on it stays Python arithmetic: it is noted as a `Formula`, which is computed again before
each call, in Python and so with Python's own results. Where such a number meets a tensor, the graph
reads a 0-d FP64 input. A comparison is answered by the present value and noted as a guard: another
answer needs another graph. All other uses are refused: a graph would hold the present value.

In torch a 0-d tensor does not decide the dtype of a result beside a tensor with dimensions, as a
Python number does not. Beside a 0-d FP32 tensor it would, so there the graph rounds it to FP32.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from mpcompile.errors import CannotCapture
from mpcompile.program.numbers.formulas import Formula, Guard, Known, evaluate
from mpcompile.program.stack_lines import line_now

MOST_INPUTS = 32
"""So many different numbers of one program may be inputs of its graph."""

_TAKE = frozenset(
    ["add", "sub", "mul", "div", "rsub", "subtract", "multiply", "divide", "true_divide", "gt",
     "ge", "lt", "le", "__rsub__", "__rdiv__", "add_", "sub_", "mul_", "div_"]
)  # fmt: skip
"""Functions of torch that compute the same with a 0-d tensor as with a Python number."""


class NumberRefused(CannotCapture):
    """A program uses a number in a way that no graph can hold with the number as an input.

    Attributes:
        names: the places of the numbers that it is computed from.
    """

    def __init__(self, what: str, names: frozenset[str] = frozenset()) -> None:
        super().__init__(f"it {what}", line_now())
        self.names = names


@dataclass(frozen=True, slots=True, eq=False)
class NumberPlace:
    """Where a program has a Python number.

    Attributes:
        name: the place as a person writes it.
        holder: a dict, list, deque, cell, class or object with slots.
        key: key or index; for a cell, class or object the name of the attribute.
    """

    name: str
    holder: Any
    key: Any

    def number(self) -> Any:
        """Return what is there now."""
        if isinstance(self.holder, dict):
            return dict.get(self.holder, self.key)
        if isinstance(self.holder, list | deque):
            return self.holder[self.key]
        return getattr(self.holder, self.key)

    def put(self, value: Any) -> None:
        """Put another object there."""
        if isinstance(self.holder, dict):
            dict.__setitem__(self.holder, self.key, value)
        elif isinstance(self.holder, list | deque):
            self.holder[self.key] = value
        else:
            setattr(self.holder, self.key, value)


@dataclass(frozen=True, slots=True, eq=False)
class NumberInputs:
    """The inputs of a graph that are computed from Python numbers of the program.

    Attributes:
        formulas: per input how its value is computed from the numbers, which have their places'
            names.
        tensors: per input the 0-d FP64 tensor that the graph reads.
        guards: the comparisons by which the program decided.
    """

    formulas: tuple[Known, ...] = ()
    tensors: tuple[torch.Tensor, ...] = ()
    guards: tuple[Guard, ...] = ()

    def admits(self, numbers: Mapping[str, float]) -> bool:
        """Whether the program would decide in the same way with these numbers."""
        return all(guard.holds(numbers) for guard in self.guards)

    def hand_over(self, numbers: Mapping[str, float]) -> None:
        """Write the values for these numbers into the tensors."""
        for formula, tensor in zip(self.formulas, self.tensors, strict=True):
            tensor.fill_(evaluate(formula, numbers))


class Recording:
    """One run of a program with objects in the place of its numbers.

    Attributes:
        formulas: what each used tensor is computed by.
        guards: the comparisons so far.
        refused: the first use that was refused, or None.

    Args:
        numbers: the present values by place.
        tensors: 0-d FP64 inputs to use, as many as `MOST_INPUTS`.
    """

    def __init__(self, numbers: Mapping[str, float], tensors: Sequence[torch.Tensor]) -> None:
        self.formulas: list[Known] = []
        self.guards: list[Guard] = []
        self.refused: NumberRefused | None = None
        self._numbers, self._tensors = numbers, tensors
        self._positions: dict[str, int] = {}

    def number(self, name: str) -> Recorded:
        """Return the object for a number."""
        return Recorded(self, name, self._numbers[name])

    def tensor(self, known: Known) -> torch.Tensor:
        """Return the input that holds a value; equal formulas share one."""
        position = self._positions.setdefault(repr(known), len(self.formulas))
        if position == len(self.formulas):
            if position == len(self._tensors):
                self.refuse("is in more formulas than a graph has inputs for", known)
            self.formulas.append(known)
        return self._tensors[position]

    def decide(self, target: Callable[..., Any], *operands: Known) -> bool:
        """Answer a comparison by the present values."""
        condition = Formula(target, operands)
        answer = bool(evaluate(condition, self._numbers))
        self.guards.append(Guard(condition, answer))
        return answer

    def inputs(self, tensors: Sequence[torch.Tensor]) -> NumberInputs:
        """Return the inputs of the graph, with the present values in the first of some tensors."""
        used = tuple(tensors[: len(self.formulas)])
        made = NumberInputs(tuple(self.formulas), used, tuple(self.guards))
        made.hand_over(self._numbers)
        return made

    def refuse(self, what: str, known: Known = 0.0) -> NoReturn:
        """Raise NumberRefused; it is also noted, because the program may catch it.

        Args:
            what: what the program does.
            known: with which number; a constant: with some.
        """
        names = Formula(operator.pos, (known,)).options()
        self.refused = self.refused or NumberRefused(what, names)
        raise self.refused


class Recorded:
    """Behaves as a Python number and notes what the program does with it.

    It is no float for functions in C, which would read its value without a note, and it is one for
    ``isinstance``. Its attributes have names that no program asks a number for.

    Attributes:
        recording_of_number: where its uses are noted.
        recorded_formula: how it is computed.
        recorded_value: its present value.
    """

    def __init__(self, recording: Recording, known: Known, value: float) -> None:
        self.recording_of_number = recording
        self.recorded_formula = known
        self.recorded_value = value

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.recorded_value)

    def _call(self, target: Callable[..., Any], *operands: Any) -> Any:
        """Do Python arithmetic on the value, and note it."""
        known, values = [], []
        for item in operands:
            if type(item) is Recorded:
                known.append(item.recorded_formula)
                values.append(item.recorded_value)
            elif type(item) in (int, float, bool):
                known.append(item)
                values.append(item)
            else:
                return NotImplemented  # a tensor: its own operator is asked next
        return Recorded(self.recording_of_number, Formula(target, tuple(known)), target(*values))

    def _compare(self, target: Callable[..., Any], other: Any) -> Any:
        if type(other) is Recorded:
            return self.recording_of_number.decide(
                target, self.recorded_formula, other.recorded_formula
            )
        if type(other) in (int, float, bool):
            return self.recording_of_number.decide(target, self.recorded_formula, other)
        return NotImplemented

    def refuse(self, what: str) -> NoReturn:
        """See `Recording.refuse`."""
        self.recording_of_number.refuse(what, self.recorded_formula)

    def beside(self, other: torch.Tensor) -> torch.Tensor:
        """Return it as a 0-d tensor that gives results beside a tensor the dtype of the tensor."""
        tensor = self.recording_of_number.tensor(self.recorded_formula)
        if other.dtype is torch.float64:
            return tensor
        whole = not (other.is_floating_point() or other.is_complex())
        if whole and other.dim() == 0 and type(self.recorded_value) is float:
            return tensor.to(torch.get_default_dtype())
        # Beside whole numbers with dimensions the planner would see, and narrow, the number itself.
        if other.dtype is not torch.float32:
            self.refuse(f"is used beside a tensor of {other.dtype}")
        return tensor if other.dim() else tensor.to(torch.float32)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch on the tensor of a number."""
        del types
        numbers = [item for item in (*args, *(kwargs or {}).values()) if type(item) is Recorded]
        others = [item for item in args if isinstance(item, torch.Tensor)]
        name = getattr(func, "__name__", "another function")
        if not numbers:  # inside a list
            raise NumberRefused(f"is an argument of {name}")
        # Dynamo, which traces branches of `torch.cond`, would not note what is done here.
        inside = torch.compiler.is_dynamo_compiling()
        if inside or kwargs or name not in _TAKE or (len(numbers), len(others)) != (1, 1):
            numbers[0].refuse(f"is an argument of {name}")
        (number,), (other,) = numbers, others
        tensor = number.beside(other)
        return func(*(tensor if item is number else other for item in args))

    def __bool__(self) -> bool:
        return self.recording_of_number.decide(operator.ne, self.recorded_formula, 0)

    def __hash__(self) -> int:
        return self.refuse("is a key of a dictionary or of a set")

    def __getattr__(self, name: str) -> Any:
        if name in vars(float) or name in vars(int):
            self.refuse(f"is used by its {name}")
        raise AttributeError(name)


def _operator(target: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Recorded, *others: Any) -> Any:
        return self._call(target, self, *others)

    def reflected(self: Recorded, other: Any) -> Any:
        return self._call(target, other, self)

    return forward, reflected


def _comparison(target: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self._compare(target, other)


def _refused(name: str) -> Callable[..., NoReturn]:
    return lambda self, *_: self.refuse(f"is used by {name}")


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _forward, _reflected = _operator(getattr(operator, _name))
    setattr(Recorded, f"__{_name}__", _forward)
    setattr(Recorded, f"__r{_name}__", _reflected)
for _name in ("neg", "pos", "abs"):
    setattr(Recorded, f"__{_name}__", _operator(getattr(operator, _name))[0])
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Recorded, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in ("float", "int", "index", "complex", "str", "format", "round", "floor", "ceil",
              "trunc", "divmod", "rdivmod", "copy", "deepcopy", "reduce_ex"):  # fmt: skip
    setattr(Recorded, f"__{_name}__", _refused(f"__{_name}__"))


def unused_inputs(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """Return inputs to capture a program with; those that it does not need are removed."""
    device = next(iter(model.parameters())).device
    return tuple(torch.zeros((), dtype=torch.float64, device=device) for _ in range(MOST_INPUTS))


@contextmanager
def in_place(places: Sequence[NumberPlace], recording: Recording) -> Iterator[None]:
    """Put recorded numbers in the place of a program's own."""
    before = [place.number() for place in places]
    try:
        for place in places:
            place.put(recording.number(place.name))
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.put(value)
