"""A step graph in ops that ONNX has: ops unknown to exporters are written out, sums are FP32."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from mpcompile.errors import CannotCapture
from mpcompile.onnx.plain_ops import PLAIN
from mpcompile.onnx.random_masks import keep_mask, next_seed
from mpcompile.passes.export.cast_read_weights import CastReadWeights
from mpcompile.passes.export.compare_wide import compare_wide
from mpcompile.passes.export.fix_options import FixOptions
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.plan.op_table import TORCH_RULES, UNKNOWN
from mpcompile.plan.rule import PrecisionClass
from mpcompile.program.marks import SLOTS, WHERE
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.step.record import record
from mpcompile.step.slots import Slot
from mpcompile.step.whole_step import whole_step
from mpcompile.torch_private.exporter import Decomposed
from mpcompile.torch_private.graphs import fake_mode_of
from mpcompile.torch_private.ops import draws, is_view, op_name
from mpcompile.torch_private.tensors import fake_like

SEED = "random_seed"
"""Name of the state that random masks depend on."""

# Each of these ops is one kernel that rounds once: its 16-bit result is the rounded FP32 result.
_ROUND_ONCE = frozenset("relu add sub mul neg where t threshold_backward sigmoid tanh".split())
_MAKES = frozenset("_to_copy new_zeros zeros ones full empty_like zeros_like copy".split())
_STORES = (PrecisionClass.TENSOR_CORE, PrecisionClass.TRANSPARENT, PrecisionClass.UNTOUCHABLE)


@dataclass(frozen=True)
class PlainStep:
    """A whole step as one graph that can be exported.

    Attributes:
        module: inputs are state, learning rates and batch; results are the loss and next states.
        inputs: the slots of its inputs, in order. The seed comes last and is not among them.
        results: names of the slots whose next values it returns after the loss; `SEED` is last if
            the step draws random numbers.
    """

    module: fx.GraphModule
    inputs: tuple[Slot, ...]
    results: tuple[str, ...]

    @property
    def draws(self) -> bool:
        """Whether the step draws random numbers."""
        return self.results[-1:] == (SEED,)


def plain_step(step: StepGraph) -> PlainStep:
    """Return a step in ops that ONNX has; the given step is not changed.

    Raises:
        CannotCapture: the step draws random numbers, other than for a dropout.
    """
    whole = whole_step(step)
    FixOptions(step)(whole)
    CastReadWeights(step.slots)(whole)
    numbers_to_tensors(whole)
    compare_wide(whole)
    mode = fake_mode_of(whole.graph)
    nodes = list(whole.graph.find_nodes(op="placeholder"))
    values = [node.meta["val"] for node in nodes]
    inputs = [fake_like(mode, v.shape, v.dtype, v.device) for v in values]
    random = any(node.op == "call_function" and draws(node) for node in whole.graph.nodes)
    names: tuple[str, ...] = SLOTS[whole.graph.output_node()]
    if random:
        inputs.append(fake_like(mode, (), torch.int64, values[0].device))

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seed = given[-1] if random else None
        with Decomposed():
            made: tuple[torch.Tensor, ...] = _Plain(whole, seed).run(*given[: len(nodes)])
        return (*made, next_seed(seed)) if seed is not None else made

    module = record(run, inputs, mode)
    slots = tuple(step.slots[name] for name in placeholders(whole.graph))
    return PlainStep(module, slots, (*names[1:], SEED) if random else tuple(names[1:]))


class _Plain(fx.Interpreter):
    """Runs a graph on fake tensors, and replaces some ops by others."""

    def __init__(self, module: fx.GraphModule, seed: torch.Tensor | None) -> None:
        super().__init__(module)
        self.seed = seed
        self.sites = 0
        self.node: fx.Node

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is operator.getitem:
            return super().call_function(target, args, kwargs)
        name = op_name(self.node)
        if draws(self.node):
            return self._dropout_mask(name, args)
        if name in PLAIN:
            return PLAIN[name](*args, **kwargs)
        narrow = any(_is_narrow(item.meta.get("val")) for item in self.node.all_input_nodes)
        if _rounds_once(self.node, name) or not narrow:
            return super().call_function(target, args, kwargs)
        wide, options = map_aggregate(args, _widened), map_aggregate(kwargs, _widened)
        found, like = super().call_function(target, wide, options), self.node.meta["val"]
        if isinstance(found, torch.Tensor):
            return _like(found, like)
        return tuple(_like(one, other) for one, other in zip(found, like, strict=True))

    def _dropout_mask(self, name: str, args: Any) -> Any:
        """Return a new dropout mask."""
        assert self.seed is not None
        self.sites += 1
        value = args[0]
        if name == "bernoulli" and len(args) > 1 and isinstance(args[1], float):
            return keep_mask(tuple(value.shape), args[1], self.seed, self.sites).to(value.dtype)
        if name == "native_dropout" and args[2] is not False:
            keep = 1.0 - args[1]
            mask = keep_mask(tuple(value.shape), keep, self.seed, self.sites)
            kept = value.float() * mask.float() * (1.0 / keep if keep else 0.0)
            return kept.to(value.dtype), mask
        where = WHERE.get(self.node)
        raise CannotCapture(
            f"{name} draws random numbers, which an exported step cannot do",
            str(where or "") or None,
            "draw the numbers outside the step and pass them in the batch",
        )


def _rounds_once(node: fx.Node, name: str) -> bool:
    """Whether an op may run on 16-bit tensors: it copies them, or rounds at most once."""
    rule = TORCH_RULES.get(name, UNKNOWN)
    known = rule is not UNKNOWN and rule.precision_class in _STORES
    return known or name in _ROUND_ONCE or name in _MAKES or is_view(node)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


def _widened(value: Any) -> Any:
    if _is_narrow(value):
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in NARROW else value


def _like(found: Any, wanted: Any) -> Any:
    if isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return found.to(wanted.dtype)
    return found
