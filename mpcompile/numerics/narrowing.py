"""What rounding one tensor to 16 bits does to an op that reads it, forward and backward.

While the program runs in FP32, each sensitive op runs once more for each tensor that it reads, with
this one tensor rounded and all others exact. The same is done for the tensors that this one is
computed from by a few ops, back to a Tensor-Core op. When the gradient of the sensitive op arrives,
the gradient that it passes to the tensor is computed both ways, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.ranges import Narrowing
from mpcompile.plan.rule import PrecisionClass, Sensitivity
from mpcompile.precision import Precision
from mpcompile.program.node_tensors import is_full
from mpcompile.torch_private.ops import arguments_of, draws, op_name

FORMATS = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
LONGEST = 5
"""A path has at most so many nodes."""
LOST = 1e6
"""The error of what is not finite, or not zero where it should be."""


class Narrowings:
    """The largest error per tensor and format, over all batches."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Narrowing]] = {}

    def found(self) -> dict[str, dict[str, Narrowing]]:
        """Return, per tensor and short name of a format, its worst reader."""
        return self._found

    def note(self, tensor: str, precision: Precision, measured: Narrowing) -> None:
        """Take a measurement in if it is the worst of its tensor."""
        held = self._found.setdefault(tensor, {})
        before = held.get(precision.short)
        if before is not None and before.reader == measured.reader:
            both = before, measured
            error, gradient = max(one.error for one in both), max(one.gradient for one in both)
            held[precision.short] = Narrowing(measured.reader, error, gradient)
        elif before is None or measured.worst > before.worst:
            held[precision.short] = measured

    def measure(self, node: fx.Node, values: Callable[[fx.Node], Any], result: Any) -> None:
        """Run a node again for each tensor that must not be rounded for it.

        Args:
            node: a call; only sensitive ops are measured.
            values: returns the value of a node that it reads.
            result: what it returned in FP32.
        """
        for path in paths(node):
            source = path[0]
            exact = values(source)
            again = partial(_rerun, path, _detached(path, values))
            for precision, dtype in FORMATS.items():
                rounded = exact.detach().to(dtype).to(torch.float32)
                with torch.no_grad():
                    error = distance(again(rounded), result)
                self.note(source.name, precision, Narrowing(node.name, error))
                trains = isinstance(result, torch.Tensor) and result.requires_grad
                if trains and exact.requires_grad:
                    result.register_hook(
                        partial(self._backward, node, source, precision, again, exact, rounded)
                    )

    def _backward(
        self,
        node: fx.Node,
        source: fx.Node,
        precision: Precision,
        again: Callable[[torch.Tensor], Any],
        exact: torch.Tensor,
        rounded: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        passed = []
        for value in (rounded, exact):
            leaf = value.detach().clone().requires_grad_()
            with torch.enable_grad():
                found = again(leaf)
                if not found.requires_grad:  # the path leads through a detach
                    return
                (by,) = torch.autograd.grad(found, leaf, gradient, allow_unused=True)
            if by is None:
                return
            passed.append(by)
        measured = Narrowing(node.name, 0.0, distance(*passed))
        self.note(source.name, precision, measured)


def paths(node: fx.Node) -> Iterator[tuple[fx.Node, ...]]:
    """Yield the ways to a sensitive op: a tensor, then the ops from it to the op itself."""
    for item in sensitive_arguments(node):
        path: tuple[fx.Node, ...] = (item, node)
        yield path
        while len(path) < LONGEST and (before := _only_source(path[0])) is not None:
            path = before, *path
            yield path


def _only_source(node: fx.Node) -> fx.Node | None:
    """Return the one tensor that harmless arithmetic computes a tensor from, beside constants."""
    rule = TORCH_RULES.get(op_name(node)) if node.op == "call_function" else None
    if rule is None or draws(node) or rule.sensitivity is not Sensitivity.HARMLESS:
        return None
    if rule.precision_class is PrecisionClass.TENSOR_CORE:
        return None
    made = [item for item in node.all_input_nodes if is_full(item) and item.op == "call_function"]
    return made[0] if len(made) == 1 else None


def _detached(path: tuple[fx.Node, ...], values: Callable[[fx.Node], Any]) -> dict[fx.Node, Any]:
    """Return what the ops of a path read from outside it."""
    read = {item: values(item) for node in path[1:] for item in node.all_input_nodes}
    return {
        item: value.detach() if isinstance(value, torch.Tensor) else value
        for item, value in read.items()
        if item not in path
    }


def _rerun(path: tuple[fx.Node, ...], given: dict[fx.Node, Any], value: torch.Tensor) -> Any:
    """Return the result of a path's last op from a value of its first tensor."""
    held: dict[fx.Node, Any] = {**given, path[0]: value}
    for node in path[1:]:
        args = fx.map_arg(node.args, held.__getitem__)
        kwargs = fx.map_arg(node.kwargs, held.__getitem__)
        held[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return held[path[-1]]


def sensitive_arguments(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the FP32 tensors that an op reads and that rounding could make wrong for it."""
    rule = TORCH_RULES.get(op_name(node)) if node.op == "call_function" else None
    if rule is None or rule.sensitivity is Sensitivity.HARMLESS or draws(node):
        return
    if rule.name == "cast" and is_full(node):
        return
    wide = rule.full_arguments.split()
    full = {item for name, item in arguments_of(node).items() if name in wide}
    for item in node.all_input_nodes:
        if is_full(item) and item not in full:
            yield item


def distance(result: Any, exact: Any) -> float:
    """Return the largest difference over the largest number; of integers the share that differs.

    Args:
        result: a tensor, or several.
        exact: the same in FP32.
    """
    if isinstance(exact, tuple | list):
        pairs = zip(result, exact, strict=True)
        return max((distance(*pair) for pair in pairs), default=0.0)
    if not isinstance(exact, torch.Tensor) or not exact.numel():
        return 0.0
    different = result != exact
    if not exact.is_floating_point():
        return float(different.float().mean())
    difference = torch.where(different & ~exact.isnan(), result.detach() - exact.detach(), 0.0)
    finite = exact.detach().abs()
    most = float(finite.masked_fill(~finite.isfinite(), 0.0).max())
    error = float(difference.abs().max())
    if not error:
        return 0.0
    return min(error / most, LOST) if most and error < float("inf") else LOST
