"""One graph that Dynamo has made, with casts by our plan.

Autograd and graph breaks stay with PyTorch. Parameters are inputs of a graph, so their casts are
nodes of the graph and their gradients are FP32.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput
from mpcompile.lower.lower import Backend, default_backend
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.passes.lowering.reshape_views import reshape_views
from mpcompile.pieces.casts import insert_casts
from mpcompile.pieces.conversion_proof import Proven
from mpcompile.pieces.tensor_cores import may_use_tensor_cores
from mpcompile.pieces.weight_copies import CopiesRead, WeightCopies, read_copies
from mpcompile.plan.dataflow import Dataflow, Fixed
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy, UnmatchedOverride
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, Input, InputKind
from mpcompile.program.control_flow import is_control_flow
from mpcompile.program.functional.copies import write_out_copies
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.inductor import (
    compile_under_autograd,
    composite,
    dynamo_constant,
    source_of,
)
from mpcompile.torch_private.ops import is_higher_order, op_name
from mpcompile.torch_private.versions import warn_if_untried

_ATEN = torch.ops.aten
_LOG = logging.getLogger("mpcompile")
_ROOT = re.compile(r"^[LG]\['[^']*'\]\.?")


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph of Dynamo in composite ops, before its casts.

    Attributes:
        forward: the graph; its inputs are the tensors that it gets.
        fixed: why the dtype of an input may not change, by placeholder.
    """

    forward: Forward
    fixed: Mapping[str, Fixed]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one graph.

    Attributes:
        casts: how many casts the plan inserted.
        wide: why the whole graph stays in FP32; None if some of it is in 16 bits.
        flow: the planner's input; None if it was not planned.
        plan: the decisions; None if it was not planned.
        captured: the graph before its casts; None if it was not planned.
    """

    casts: int
    wide: str | None
    flow: Dataflow | None = None
    plan: Plan | None = None
    captured: Captured | None = None


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A graph with casts, in composite ops and without writes.

    Attributes:
        module: its first results are the new values of the inputs that are `written`.
        written: the names of these placeholders.
        plain: the same graph without casts.
        weights: per input whether it is a parameter.
    """

    module: fx.GraphModule
    written: tuple[str, ...]
    plain: fx.GraphModule
    weights: tuple[bool, ...]


def compile_graph(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    policy: Policy,
    backend: Backend | None = None,
    within: str = "",
    copies: WeightCopies | None = None,
    *,
    every: bool = False,
) -> tuple[Callable[..., Any], Outcome]:
    """Rewrite one graph of Dynamo, and say what became of it.

    With the backend ``interpreter`` the graph runs op by op under eager autograd, on a CPU in
    pseudo FP16 (`mpcompile.passes.lowering.emulate_half`). With ``inductor`` inductor compiles it.

    Args:
        module: calls of torch functions; parameters and buffers are inputs.
        inputs: fake tensors, and symbols for dynamic sizes.
        policy: gives the wished precision of each op.
        backend: default: that of the device.
        within: the dotted name of the module that is compiled, in the model that overrides name.
        copies: 16-bit copies of weights, which the graph reads instead of casting them.
        every: also plan a graph that has nothing for a Tensor Core, to show its plan.

    Raises:
        BadInput: the model runs under ``torch.autocast``.
    """
    warn_if_untried()
    _refuse_autocast(module)
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    backend = backend or default_backend(device)
    if every or policy.half or may_use_tensor_cores(module):
        rewritten, outcome = _rewritten(module, policy, within)
    else:
        rewritten, outcome = None, Outcome(0, "nothing in it is for a Tensor Core")
    if rewritten is None:
        if backend == "inductor":
            return compile_under_autograd(module, None, inputs), outcome
        return module.forward, outcome
    read = CopiesRead()
    if copies is not None:
        read = read_copies(rewritten.module, rewritten.weights)
    if backend != "inductor":
        if device.type == "cpu":
            emulate_half(rewritten.module)
        reshape_views(rewritten.module)
    _write_back(rewritten.module, rewritten.written)
    made: Callable[..., Any] = rewritten.module.forward
    if backend == "inductor":
        given = [*inputs, *read.examples(inputs)]
        made = compile_under_autograd(module, rewritten.module, given)
    if copies is not None:
        made = read.bound(made, copies)
    _write_back(rewritten.plain, rewritten.written)
    return Proven(made, rewritten.plain.forward, module.forward), outcome


def _refuse_autocast(module: fx.GraphModule) -> None:
    enters = [node for node in module.graph.nodes if op_name(node) == "_enter_autocast"]
    if enters or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise BadInput(
            "the model runs under torch.autocast",
            "torch.compile(backend='mpcompile')",
            "remove autocast, because mpcompile inserts the casts",
        )


def _rewritten(
    module: fx.GraphModule, policy: Policy, within: str
) -> tuple[_Rewritten | None, Outcome]:
    if policy.changes_nothing:
        return None, Outcome(0, "the policy changes nothing")
    for node in module.graph.nodes:
        if is_higher_order(node) and not is_control_flow(node):
            return None, _left(f"calls {op_name(node)}, which has its own backward")
    placeholders = module.graph.find_nodes(op="placeholder")
    values = [node.meta["example_value"] for node in placeholders]
    traced, written = composite(module, values)
    names = [node.name for node in traced.graph.find_nodes(op="placeholder")]
    parameters = [isinstance(value, torch.nn.Parameter) for value in values]
    if any(name in written for name, mine in zip(names, parameters, strict=True) if mine):
        return None, _left("writes to a parameter")
    constants = {
        name: constant
        for name, placeholder in zip(names, placeholders, strict=True)
        if name not in written and (constant := dynamo_constant(placeholder)) is not None
    }
    fixed = {
        name: Fixed.PARAMETER if parameter else Fixed.BUFFER if name in constants else Fixed.INPUT
        for name, parameter in zip(names, parameters, strict=True)
    }
    for node in traced.graph.nodes:
        _name_modules(node, within)
    _detach_instead_of_switching(traced.graph)
    write_out_copies(traced.graph)
    plain = copy_graph(traced)
    inputs = tuple(
        Input(name, _kind(fixed[name]), _ROOT.sub("", source_of(placeholder)), value)
        for name, placeholder, value in zip(names, placeholders, values, strict=True)
        if isinstance(value, torch.Tensor)
    )
    captured = Captured(Forward(copy_graph(traced), inputs, written), fixed)
    with warnings.catch_warnings():
        # An override may be for an op in another graph of the model.
        warnings.simplefilter("ignore", UnmatchedOverride)
        flow, plan = insert_casts(traced, fixed, constants, policy)
    if not plan.casts:
        reasons = Counter(decision.reason for decision in plan.decisions).most_common(1)
        why = f", most often because: {reasons[0][0]}" if reasons else ""
        left = f"the plan leaves all {len(plan.decisions)} ops in FP32{why}"
        return None, Outcome(0, left, flow, plan, captured)
    narrow = sum(decision.computes is not Precision.FP32 for decision in plan.decisions)
    _LOG.info(
        "a graph of %d ops: %d compute in 16 bits, %d casts",
        len(plan.decisions),
        narrow,
        len(plan.casts),
    )
    return _Rewritten(traced, written, plain, tuple(parameters)), Outcome(
        len(plan.casts), None, flow, plan, captured
    )


def _kind(fixed: Fixed) -> InputKind:
    kinds = {Fixed.PARAMETER: InputKind.PARAMETER, Fixed.BUFFER: InputKind.BUFFER}
    return kinds.get(fixed, InputKind.BATCH)


def _left(reason: str) -> Outcome:
    _LOG.warning("a graph stays in FP32, because it %s; move this out of the compiled code", reason)
    return Outcome(0, f"it {reason}")


def _name_modules(node: fx.Node, within: str) -> None:
    """Give modules the dotted names that they have in the model: ``L['self'].fc`` is ``fc``."""
    stack = node.meta.get("nn_module_stack") or {}
    named = {
        key: (".".join(filter(None, (within, _ROOT.sub("", path)))), kind)
        for key, (path, kind) in stack.items()
    }
    if within and not named:
        named = {within: (within, "")}
    node.meta["nn_module_stack"] = named


def _detach_instead_of_switching(graph: fx.Graph) -> None:
    """Remove the nodes that switch gradients off or on; detach the results of no-grad regions.

    Readers inside and outside a no-grad region share a cast, so the cast must carry gradients.

    If the whole call runs without gradients, a region *with* gradients computes the same values.
    """
    enabled = True
    inside: list[fx.Node] = []
    for node in list(graph.nodes):
        if op_name(node) == "_set_grad_enabled":
            enabled = bool(node.args[0])
            graph.erase_node(node)
        elif not enabled and node.op == "call_function":
            inside.append(node)
    for node in inside:
        value = node.meta.get("val")
        users = [user for user in node.users if user not in inside]
        if users and isinstance(value, torch.Tensor) and value.is_floating_point():
            with graph.inserting_after(node):
                detached = graph.call_function(_ATEN.detach.default, (node,))
            detached.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, detached)


def _write_back(module: fx.GraphModule, written: Sequence[str]) -> None:
    """Let the graph write the new values of inputs into the inputs, and return the other results.

    The graph reads a copy of each input, because autograd keeps the inputs of ops, and these must
    not change.
    """
    graph = module.graph
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, list | tuple)
    inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for name in written:
        with graph.inserting_before(first):
            copied = graph.call_function(_ATEN.clone.default, (inputs[name],))
        inputs[name].replace_all_uses_with(copied)
        copied.args = (inputs[name],)
    with graph.inserting_before(output):
        for name, value in zip(written, returned, strict=False):
            graph.call_function(_ATEN.copy_.default, (inputs[name], value))
    output.args = (tuple(returned[len(written) :]),)
    graph.lint()
    module.recompile()
