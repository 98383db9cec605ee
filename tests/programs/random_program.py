"""Random forward programs of every dtype, as graphs of ATen ops."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from programs.graphs import graph_of

Tensor = torch.Tensor

INPUTS: dict[str, Tensor] = {
    "x": torch.linspace(-2, 2, 32).view(4, 8),
    "w": torch.linspace(-1, 1, 64).view(8, 8).sin(),
    "g": torch.linspace(0.5, 1.5, 8),
    "b": torch.linspace(-0.5, 0.5, 8),
    "mask": (torch.arange(32).view(4, 8) % 3) == 0,
    "rows": torch.tensor([2, 0, 3, 1]),
    "d": torch.linspace(-1, 1, 32, dtype=torch.float64).view(4, 8),
    "h": torch.linspace(-1, 1, 32).half().view(4, 8),
}
PARAMETERS = ("w", "g", "b")

# From two FP32 tensors of shape [4, 8] and all inputs to one tensor of that shape.
STEPS: dict[str, Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]] = {
    "linear": lambda a, _, i: a @ i["w"],
    "linear with bias": lambda a, _, i: torch.addmm(i["b"], a, i["w"]),
    "product": lambda a, b, _: (a @ b.transpose(0, 1)) @ b,
    "norm": lambda a, _, i: functional.layer_norm(a, (8,), i["g"], i["b"]),
    "softmax": lambda a, _, _i: torch.softmax(a, -1),
    "log_softmax": lambda a, _, _i: torch.log_softmax(a, -1),
    "relu": lambda a, _, _i: torch.relu(a),
    "gelu": lambda a, _, _i: functional.gelu(a),
    "tanh": lambda a, _, _i: torch.tanh(a),
    "exp": lambda a, _, _i: torch.exp(-a.abs()),
    "square": lambda a, _, _i: a.pow(2).mean(-1, keepdim=True) + a,
    "add": lambda a, b, _: a + b,
    "mul": lambda a, b, _: a * b,
    "scale": lambda a, _, i: a * i["g"] + i["b"],
    "view": lambda a, _, _i: a.view(8, 4).transpose(0, 1).contiguous().view(4, 8) + a,
    "halves": lambda a, b, _: torch.cat([a[:, :4], b[:, 4:]], dim=1),
    "where": lambda a, b, i: torch.where(i["mask"], a, b),
    "mask": lambda a, _, i: a.masked_fill(i["mask"], 0.0),
    "gather": lambda a, _, i: a[i["rows"]],
    "count": lambda a, _, _i: a + a.argmax(-1, keepdim=True),
    "double": lambda a, _, i: (a.double() * i["d"]).float(),
    "half already": lambda a, _, i: i["h"].relu().float() + a,
}
TENSOR_CORE = ("linear", "linear with bias", "product")


@dataclass(frozen=True)
class Program:
    """A program: per step its name and the numbers of its operands; 0 is the input ``x``."""

    steps: tuple[tuple[str, int, int], ...]
    outputs: tuple[int, ...]

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(INPUTS, values, strict=True))
        made = [given["x"]]
        for name, first, second in self.steps:
            made.append(STEPS[name](made[first], made[second], given))
        return (
            *(made[number] for number in self.outputs),
            made[-1].argmax(-1),
            made[-1].double().sum(),
        )

    def graph(self) -> fx.GraphModule:
        """Return the program as a graph."""
        return graph_of(self, **INPUTS)


def random_program(
    chooser: random.Random, steps: int = 8, without: tuple[str, ...] = ()
) -> Program:
    """Return a program of at least one step, with none of the steps in `without`."""
    names = [name for name in STEPS if name not in without]
    count = chooser.randint(1, steps)
    made = tuple(
        (chooser.choice(names), chooser.randint(0, number), chooser.randint(0, number))
        for number in range(count)
    )
    return Program(made, (count, *chooser.sample(range(1, count + 1), chooser.randint(0, 1))))
