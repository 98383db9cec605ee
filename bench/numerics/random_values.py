"""Try random programs of sensitive ops, matmuls and norms on numbers of every size.

``python -m bench.numerics.random_values [--count 50000] [--seed 0] [--only N]``

Inputs are numbers from 1e-6 to 1e6 and integers to 1e6. Each program runs in FP64, in FP32, under
eager autocast in FP16, and by our plan. Ours may be at most `FACTOR` times as far from FP64 as
autocast, or within `ROUNDING` of the largest result. A program is left out if it is
ill-conditioned: FP32 itself loses `LOST` of its result.

Every third program ends with an op of the op table, in turn, see `bench.numerics.table_ops`, and
a matmul; its floating-point data are within FP16's range, as most ops of the table need no digits
and the plan does not know the size of a batch. The others end with a norm and a matmul.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from bench.machine import describe
from bench.numerics.table_ops import REFUSALS, table_op
from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.plan.dataflow import Fixed
from mpcompile.plan.given import decide
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.describe import dataflow

ROWS, COLUMNS = 8, 16
EVERY = 3
FACTOR, ROUNDING = 3.0, 2.0**-8
LOST = 5e-6
"""40 times the rounding of FP32; so much of one rounding to FP16 would be more than `ROUNDING`."""

LOST_OF_TABLE_OP = 8 * 2.0**-23
"""The same for a program that ends with an op of the table, such as a sum that nearly cancels: one
rounding to FP16 that grows as much is `ROUNDING`."""

ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "atan": torch.atan,
    "erf": torch.erf,
    "exp": lambda x: x.clamp(-8, 4).exp(),
    "log": lambda x: (x.abs() + 1e-3).log(),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "square": torch.square,
    "floor": torch.floor,
    "round": torch.round,
    "frac": torch.frac,
    "remainder": lambda x: x.remainder(7.0),
    "sign": torch.sign,
    "sort": lambda x: x.sort(-1).values,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: nn.functional.layer_norm(x, (COLUMNS,)),
    "normalize": lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-3),
    "center": lambda x: x - x.mean(-1, keepdim=True),
    "deviation": lambda x: x / (x.std(-1, keepdim=True) + 1),
    "variance": lambda x: x.var(-1, keepdim=True).expand(ROWS, COLUMNS),
    "cumsum": lambda x: x.cumsum(-1),
    "neg": torch.neg,
    "abs": torch.abs,
    "scale": lambda x: x * 0.37,
    "clamp": lambda x: x.clamp(-3, 3),
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip(0),
}
TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda a, b: a / (b.abs() + 1),
    "maximum": torch.maximum,
    "atan2": torch.atan2,
    "where": lambda a, b: torch.where(a > b, a, b * 0.5),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The errors of one program over its largest result, and its steps.

    Attributes:
        fp32: of FP32.
        autocast: of eager autocast.
        ours: of the planned graph.
        steps: the names of its ops, in order.
        lost: the error of FP32 from which it counts as ill-conditioned.
    """

    fp32: float
    autocast: float
    ours: float
    steps: tuple[str, ...]
    lost: float = LOST

    @property
    def ill_conditioned(self) -> bool:
        """Whether FP32 itself loses so much that nothing follows from ours."""
        return not self.fp32 < self.lost  # not a number if the result is 0

    @property
    def wrong(self) -> bool:
        """Whether ours is farther from FP64 than it may be."""
        allowed = max(FACTOR * self.autocast, ROUNDING)
        return not self.ill_conditioned and not self.ours <= allowed


def program(
    seed: int, with_table_op: bool
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[str, ...]]:
    """Return a random function, its inputs and its steps.

    The inputs are data, integers, three weights, then what an op of the table reads besides.

    Args:
        seed: of all that is drawn.
        with_table_op: end with an op of the table.
    """
    draw, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    largest = 4 if with_table_op else 6
    size = 10.0 ** draw.uniform(-6, largest)
    offset = 10.0 ** draw.uniform(-6, largest) * draw.choice((0, 1))
    shape = ROWS, COLUMNS
    data = torch.randn(shape, generator=numbers) * size + offset
    integers = torch.randint(0, 10 ** draw.randint(1, 6), shape, generator=numbers)
    weights = [torch.randn(COLUMNS, COLUMNS, generator=numbers) / 4 for _ in range(3)]
    kinds = [*ONE] + [*TWO] * 2 + ["layer"] * 12 + ["gram"] * 6
    steps = [
        (draw.choice(kinds), draw.random(), draw.random(), draw.randrange(3))
        for _ in range(draw.randint(3, 8))
    ]

    last = table_op(seed // EVERY) if with_table_op else None
    inputs = data, integers, *weights, *(last.tensors if last is not None else ())

    def run(data: Tensor, integers: Tensor, *others: Tensor, raw: bool = True) -> Tensor:
        weights, others = others[:3], others[3:]
        made = [data, integers.to(data.dtype)]
        for name, first, second, index in steps:
            # Late values are drawn more often than early ones.
            a, b = (made[int(math.sqrt(share) * len(made))] for share in (first, second))
            if name in ONE:
                made.append(ONE[name](a))
            elif name in TWO:
                made.append(TWO[name](a, b))
            elif name == "layer":
                made.append(nn.functional.layer_norm(a, (COLUMNS,)) @ weights[index])
            else:
                made.append(a @ a.T @ (a / (a.abs().amax() + 1)) / COLUMNS)
        if last is not None:
            return last.call(made[-1], raw, others) @ weights[0]
        return nn.functional.layer_norm(made[-1], (COLUMNS,)) @ weights[0]

    names = *(step[0] for step in steps), *((last.name,) if last is not None else ())
    try:
        run(*map(_double, inputs))
    except REFUSALS:
        return partial(run, raw=False), inputs, names
    return run, inputs, names


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def outcome_of(seed: int) -> Outcome | None:
    """Run one program in each way.

    One that ends with an op of the table and cannot be compared is replaced by one without it.

    Returns:
        None if it is not finite in FP64, if autocast or a CPU in 16 bits refuses an op of it, or
        if it ends with an op of the table and is only zeros.
    """
    found = _outcome(seed, True) if seed % EVERY == 0 else None
    return found or _outcome(seed, False)


def _outcome(seed: int, with_table_op: bool) -> Outcome | None:
    run, inputs, steps = program(seed, with_table_op)
    exact = run(*map(_double, inputs))
    if not bool(exact.isfinite().all()) or (with_table_op and not bool(exact.any())):
        return None
    try:
        with torch.autocast("cpu", dtype=torch.float16):
            autocast = _error(run(*inputs), exact)
    except REFUSALS:
        return None
    module = make_fx(run, pre_dispatch=True)(*inputs)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    fixed = {
        name: Fixed.PARAMETER if 2 <= index < 5 else Fixed.BATCH for index, name in enumerate(names)
    }
    plan = decide(dataflow(module, fixed, Policy()), Precision.FP16)
    run_passes(module, forward_passes(plan), lambda _: None)
    module.recompile()
    try:
        ours = _error(module(*inputs), exact)
    except NotImplementedError:
        return None  # no 16-bit kernel on a CPU
    lost = LOST_OF_TABLE_OP if with_table_op else LOST
    return Outcome(_error(run(*inputs), exact), autocast, ours, steps, lost)


def _error(result: Tensor, exact: Tensor) -> float:
    if not bool(result.isfinite().all()):
        return math.inf
    return float((result.double() - exact).abs().max() / exact.abs().max())


def campaign(seeds: range) -> Iterator[tuple[int, Outcome]]:
    """Yield each program that is finite in FP64 with its seed."""
    for seed in seeds:
        outcome = outcome_of(seed)
        if outcome is not None:
            yield seed, outcome


def main() -> None:
    """Print each program that is wrong, then the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=50_000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="the first program's seed")
    parser.add_argument("--only", type=int, help="one seed, printed whether right or wrong")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    one = asked.only is not None
    first, count = (asked.only, 1) if one else (asked.seed, asked.count)
    tried, left_out, wrong = 0, 0, 0
    for seed, outcome in campaign(range(first, first + count)):
        tried += 1
        left_out += outcome.ill_conditioned
        wrong += outcome.wrong
        if outcome.wrong or one:
            print(seed, outcome, flush=True)
    print(f"{tried} programs, {left_out} ill-conditioned and left out, {wrong} wrong")
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
