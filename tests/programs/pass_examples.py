"""Functions for the examples in the docstrings of passes."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch
from oracles.simulated_ranks import among as among
from torch import fx, nn

from mpcompile.onnx.rewrite import Prepared, prepare
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.kernels import Target
from mpcompile.passes.order import forward_passes, training_passes
from mpcompile.passes.runner import pass_name
from mpcompile.plan.plan import Plan
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.capture import capture
from mpcompile.program.describe import dataflow
from mpcompile.program.graph_text import graph_text
from mpcompile.program.marks import BACKWARD
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph, call, placeholders
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.torch_private.ops import op_name
from programs.graphs import graph_of, step_of

_SHORT = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BOOL: "b8",
}


def f32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def f16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def graph(
    program: Callable[..., Any], backward: str = "", **inputs: torch.Tensor
) -> fx.GraphModule:
    """Record a program; the part from the first op named `backward` on is backward."""
    module = graph_of(program, **inputs)
    late = False
    for node in module.graph.nodes:
        late = late or op_name(node) == backward
        if late and node.op == "call_function":
            BACKWARD[node] = True
    return module


def forward(
    model: nn.Module, *batch: torch.Tensor, casts: bool = True, until: str = ""
) -> fx.GraphModule:
    """Return the forward graph of a model, in FP16 unless `casts` is False.

    With `until` it is the graph of a training program, before the pass of that name.
    """
    if until:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        module = capture(Workload(model, batch, _loss, optimizer)).module
    else:
        module = capture(Workload(model, batch)).module
    if casts:
        plan = planned(module)
        for rewrite in forward_passes(plan):
            if pass_name(rewrite) == until:
                break
            rewrite(module)
    return module


class By(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


class MatmulByHand(nn.Module):
    """A matmul with a derivative of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = By.apply(x, self.w)  # type: ignore[no-untyped-call]
        return result


def planned(module: fx.GraphModule) -> Plan:
    """Return the plan of a forward graph in FP16."""
    return make_plan(dataflow(module, {}, Policy()), Precision.FP16)


class Head(nn.Module):
    """A linear, perhaps after running statistics or after a weight that is only read."""

    def __init__(self, before: nn.Module | None = None, clips: bool = False) -> None:
        super().__init__()
        self.before, self.clips = before, clips
        self.w = nn.Parameter(torch.ones(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.before is None else self.before(x)
        if self.clips:
            self.w.data.clamp_(-1, 1)
        return nn.functional.linear(x, self.w)


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(x).sum()
    return result


def step_before(
    name: str,
    loop: Loop = PLAIN,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    before: nn.Module | None = None,
    clips: bool = False,
) -> StepGraph:
    """Return a step that trains one weight ``w`` of shape [3, 4], before the named pass.

    It is in FP16 and has a loss scale of 128; the arena holds this weight only. The default
    optimizer is SGD. With `clips` the program clips the weight before it reads it.
    """
    model = Head(before, clips)
    workload = Workload(model, (torch.ones(2, 4),), _loss, optimizer([model.w], lr=0.5))
    ranks = loop.parallel.ranks if loop.parallel is not None and loop.parallel.shard else 1
    step = step_of(workload, ranks=ranks)
    for rewrite in training_passes(LossScale.static(128.0), loop):
        if pass_name(rewrite) == name:
            return step
        rewrite(step)
    raise ValueError(f"the pass {name} has no line in training_passes of passes/order.py")


def pad(step: StepGraph, name: str, rows: int) -> None:
    """Append rows of zeros to a working copy for its first reader in backward."""
    nodes = step.gradient.graph
    copy = placeholders(nodes)[f"{name}.working"]
    with nodes.inserting_before(nodes.output_node()):
        zeros = call(nodes, torch.ops.aten.new_zeros.default, copy, [rows, 4])
        whole = call(nodes, torch.ops.aten.cat.default, [copy, zeros])
        call(nodes, torch.ops.aten.neg.default, whole)


def onnx_model(graph: str) -> ir.Model:
    """Return a model of opset 17 around a graph in ONNX's text."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {graph}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    return model


def onnx_planned(graph: str) -> tuple[Plan, Prepared]:
    """Return the FP16 plan of such a model, and the prepared model that was planned."""
    prepared = prepare(onnx_model(graph), Policy(), Precision.FP16, Target.CPU)
    return make_plan(prepared.flow, Precision.FP16), prepared


def _onnx_text(node: ir.Node) -> str:
    name = f"[{node.name}]  " if node.name else ""
    out = node.outputs[0]
    assert out.dtype is not None
    shape = ",".join(map(str, out.shape or ()))
    reads = " ".join(str(value.name) for value in node.inputs if value is not None)
    return f"{name}{out.name}  {_SHORT[out.dtype]}[{shape}]  {node.op_type} {reads}"


def before_and_after(rewrite: Callable[[Any], int], subject: Any) -> None:
    """Run a pass and print the lines that it removes (-) and adds (+) in each graph's text."""
    before = _texts(subject)
    assert rewrite(subject)
    for name, lines in _texts(subject).items():
        changed = [line for line in difflib.ndiff(before.get(name, []), lines) if line[0] in "+-"]
        heading = [name] if changed and name else []
        sys.stdout.writelines(f"{line}\n" for line in heading + changed)


def _texts(subject: Any) -> dict[str, list[str]]:
    """Return the text lines of each graph, by its name in a step."""
    if isinstance(subject, StepGraph):
        texts = {name: graph_text(graph) for name, graph in subject.graphs().items()}
    elif isinstance(subject, ir.Model):
        texts = {"": "\n".join(map(_onnx_text, subject.graph.all_nodes()))}
    else:
        texts = {"": graph_text(subject.graph)}
    return {
        name: [re.sub(r"\s{2,}", "  ", line.strip()) for line in text.splitlines()]
        for name, text in texts.items()
    }
