"""Small models with control flow, each beside the same program in plain Python."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch._higher_order_ops import map as map_rows
from torch._higher_order_ops import scan as scan
from torch._higher_order_ops import while_loop
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from mpcompile.plan.dataflow import Dataflow, Fixed
from mpcompile.plan.policy import Policy
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.describe import dataflow
from mpcompile.torch_private.graphs import fake_mode_of

Tensor = torch.Tensor


class Flow(nn.Module):
    """Two linears with control flow; `plain` is the same control flow in Python."""

    shape: tuple[int, ...] = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def plain(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def batch(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))


class Branch(Flow):
    """One branch wants a Tensor Core, the other FP32: their results must agree in dtype."""

    def yes(self, h: Tensor) -> Tensor:
        return torch.relu(self.b(h))

    def no(self, h: Tensor) -> Tensor:
        return torch.exp(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        result: Tensor = self.a(torch.cond(h.sum() > 0, self.yes, self.no, (h,)))
        return result

    def plain(self, x: Tensor) -> Tensor:
        h = self.a(x)
        result: Tensor = self.a(self.yes(h) if h.sum() > 0 else self.no(h))
        return result


class OtherBranch(Branch):
    def batch(self) -> Tensor:
        return -super().batch()


class Repeat(Flow):
    def again(self, i: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, torch.relu(self.b(h))

    def forward(self, x: Tensor) -> Tensor:
        start = (torch.zeros((), dtype=torch.int64), self.a(x))
        _, h = while_loop(lambda i, _: i < 3, self.again, start)
        return cast(Tensor, self.a(h))

    def plain(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for _ in range(3):
            h = torch.relu(self.b(h))
        return cast(Tensor, self.a(h))


class Recurrent(Flow):
    shape = (5, 4, 8)

    def cell(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.a(x) + self.b(h))
        return h, h.clone()

    def forward(self, x: Tensor) -> Tensor:
        h, ys = scan(self.cell, torch.zeros(4, 8), x)
        return cast(Tensor, self.a(ys) + h)

    def plain(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros(4, 8), []
        for row in x:
            h, y = self.cell(h, row)
            ys.append(y)
        return cast(Tensor, self.a(torch.stack(ys)) + h)


class Gated(Recurrent):
    """A branch inside a loop."""

    def cell(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cond(x.sum() > 0, lambda h, x: self.b(h) + x, lambda h, _: torch.tanh(h), (h, x))
        return h, h * 2

    def plain(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros(4, 8), []
        for row in x:
            h = self.b(h) + row if row.sum() > 0 else torch.tanh(h)
            ys.append(h * 2)
        return cast(Tensor, self.a(torch.stack(ys)) + h)


class Rows(Flow):
    shape = (5, 4, 8)

    def row(self, x: Tensor, *_: object) -> Tensor:
        return torch.softmax(self.a(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.b(map_rows(self.row, x)))

    def plain(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.b(torch.stack([self.row(row) for row in x])))


FLOWS: dict[str, type[Flow]] = {
    "branch": Branch,
    "other branch": OtherBranch,
    "while loop": Repeat,
    "scan": Recurrent,
    "branch in scan": Gated,
    "map": Rows,
}


_PROGRAMS: dict[str, torch.export.ExportedProgram] = {}


def exported(flow: type[Flow]) -> torch.export.ExportedProgram:
    """Export a flow once; no test may change the program."""
    name = f"{flow.__module__}.{flow.__qualname__}"
    if name not in _PROGRAMS:
        model = flow()
        _PROGRAMS[name] = torch.export.export(model, (model.batch(),), strict=False)
    return _PROGRAMS[name]


def flow_of(program: torch.export.ExportedProgram) -> Dataflow:
    """Return the rows that the planner reads."""
    fixed = dict.fromkeys(program.graph_signature.inputs_to_parameters, Fixed.PARAMETER)
    return dataflow(program.graph_module, fixed, Policy())


def run(program: torch.export.ExportedProgram, x: Tensor) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, program.module()(x))


def refuse_mixed_dtypes(program: torch.export.ExportedProgram) -> None:
    """Run each graph on fakes of its inputs' recorded dtypes; each node must get its own."""
    for module in all_graphs(program.graph_module):
        noted = {node: node.meta["val"] for node in module.graph.nodes if "val" in node.meta}
        inputs = [noted[node] for node in module.graph.find_nodes(op="placeholder")]
        mode = fake_mode_of(module.graph)
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
        for node, before in noted.items():
            after = node.meta["val"]
            pairs = zip(before, after, strict=True) if isinstance(before, tuple | list) else ()
            for old, new in (*pairs, (before, after)):
                if isinstance(old, torch.Tensor):
                    assert old.dtype is new.dtype, node
