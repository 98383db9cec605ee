"""What one forward and backward pass leaves behind: in eager PyTorch, and by the captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx

from mpcompile.program.capture import Forward, InputKind
from mpcompile.program.complex_parameters import as_real
from mpcompile.program.derivatives.own_backward import OwnBackward
from mpcompile.program.functional.instead import DifferentiableInterpreter
from mpcompile.program.proof.left_behind import left_values
from mpcompile.program.proof.snapshot import TensorCopies
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.program.random_state import RandomState, drawn_again, random_state
from mpcompile.program.workload import Workload
from mpcompile.torch_private.modules import hooks_of
from mpcompile.torch_private.ops import draws
from mpcompile.torch_private.tensors import version_of
from mpcompile.torch_private.tracing import leaves_of


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The results of one forward and backward pass; all tensors are detached.

    Attributes:
        loss: 0-d.
        beside: the tensors that the loss function returns beside the loss, then those that the
            program leaves in attributes.
        gradients: per trained parameter its gradient; None: the loss does not reach it.
        written: the next values of the model's parameters and buffers that the pass has written.
        random: the state of torch's generators after the forward pass.
        batch: the indices of the tensors of the batch that the program has written.
        largest: per node of the graph the largest magnitude of the gradient by it, 0-d, if these
            were measured.
    """

    loss: torch.Tensor
    beside: tuple[torch.Tensor, ...]
    gradients: dict[str, torch.Tensor | None]
    written: dict[str, torch.Tensor]
    random: RandomState
    batch: tuple[int, ...] = ()
    largest: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A captured program and the tensors of its model.

    Attributes:
        workload: the program, with a loss and an optimizer.
        forward: its captured graph.
        state: the parameters, buffers and constants by the name that the graph gives them.
        hooked: whether code of the program runs in backward: hooks, Functions.
        homes: every name of a tensor in the model, and its key in `state`: it may have several.
        trained: the names of the captured parameters that the optimizer trains.
        device: the device of the model.
        found: what the program can read.
    """

    workload: Workload
    forward: Forward
    state: dict[str, torch.Tensor]
    hooked: bool
    homes: dict[str, str]
    trained: tuple[str, ...]
    device: torch.device
    found: Surroundings

    @classmethod
    def of(cls, workload: Workload, forward: Forward, found: Surroundings) -> Subject:
        """Collect the tensors of a captured program."""
        assert workload.optimizer is not None
        model = workload.model
        given = (InputKind.BATCH, InputKind.NUMBER)
        state = {item.name: item.tensor for item in forward.inputs if item.kind not in given}
        keys = {id(tensor): name for name, tensor in state.items()}
        homes = {}
        for name, tensor in _tensors(model).items():
            homes[name] = keys.setdefault(id(tensor), name)
            state.setdefault(homes[name], tensor)
        groups = workload.optimizer.param_groups
        wanted = {id(p) for group in groups for p in group["params"] if p.requires_grad}
        trained = tuple(
            item.name
            for item in forward.inputs
            if item.kind is InputKind.PARAMETER and id(item.tensor) in wanted
        )
        device = next(iter(model.parameters())).device
        nodes = forward.module.graph.nodes
        hooked = any(isinstance(node.target, OwnBackward) for node in nodes)
        hooked = hooked or any(map(hooks_of, state.values()))
        return cls(workload, forward, state, hooked, homes, trained, device, found)


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def of_program(subject: Subject, copies: TensorCopies, state: RandomState) -> Outcome:
    """Run the user's own program once, forward and backward, so that all its hooks run.

    The caller puts back what the program has changed.

    Args:
        subject: the program; its tensors are written if the program writes them.
        copies: of all its tensors before.
        state: the random numbers to draw.
    """
    workload = subject.workload
    copies.set_gradients_aside()
    batch = [value.detach().clone().requires_grad_(value.requires_grad) for value in workload.batch]
    versions = list(map(version_of, batch))
    with drawn_again(state), torch.enable_grad():
        result = workload.run(workload.model, batch)
        after = random_state(subject.device)
        loss, *beside = [leaf for leaf in leaves_of(result) if isinstance(leaf, torch.Tensor)]
        if loss.requires_grad:
            loss.backward()
    gradients: dict[str, torch.Tensor | None] = {}
    for name in subject.trained:
        gradient = _dense(subject.state[name].grad)
        gradients[name] = None if gradient is None else as_real(gradient)
    written = {}
    homes = subject.homes
    now = {homes.get(name, name): tensor for name, tensor in _tensors(workload.model).items()}
    changed = {id(tensor) for _, tensor in copies.changed()}
    for name, tensor in {**subject.state, **now}.items():
        if tensor is not subject.state.get(name) or id(tensor) in changed:
            written[name] = tensor.detach().clone()
    beside += left_values(subject.found, subject.forward.left)
    kept = tuple(value.detach().clone() for value in beside)
    hit = tuple(k for k, value in enumerate(batch) if version_of(value) != versions[k])
    return Outcome(loss.detach(), kept, gradients, written, after, hit)


def of_graph(
    subject: Subject, state: RandomState, *, exact: bool = False, measured: bool = False
) -> Outcome:
    """Run the captured graph once under autograd, on the user's tensors, which it only reads.

    Args:
        subject: the captured program.
        state: the random numbers to draw.
        exact: compute in FP64; random numbers are those of FP32.
        measured: note the largest magnitude of the gradient by each floating-point node.
    """
    forward = subject.forward
    values, leaves = [], {}
    for item in forward.inputs:
        value = item.value
        value = value.double() if exact and value.dtype is torch.float32 else value
        if item.name in subject.trained:
            leaves[item.name] = value.requires_grad_()
        values.append(value)
    largest: dict[str, torch.Tensor] = {}
    interpreter = (_Exact if exact else DifferentiableInterpreter)(forward.module)
    if measured:
        interpreter = _Measured(forward.module, largest)
    run = interpreter.run
    with drawn_again(state), torch.enable_grad():
        results: Sequence[torch.Tensor] = run(*values, enable_io_processing=False)
        after = random_state(subject.device)
        loss = results[-1]
        found: Sequence[torch.Tensor | None] = [None] * len(leaves)
        if loss.requires_grad and leaves:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            # A Function that runs a part of the model again adds to ``weight.grad`` itself.
            found = [
                _sum(gradient, leaf.grad)
                for gradient, leaf in zip(found, leaves.values(), strict=True)
            ]
    dense = dict(zip(leaves, map(_dense, found), strict=True))
    if measured:
        homes = {item.name: item.node for item in forward.inputs}
        for name, gradient in dense.items():
            if gradient is not None:
                _note(largest, homes[name], gradient)
    count = len(forward.written)
    return Outcome(
        loss.detach(),
        tuple(value.detach() for value in results[count:-1]),
        dense,
        {
            subject.homes.get(name, name): value.detach()
            for name, value in zip(forward.written, results, strict=False)
        },
        after,
        largest=largest,
    )


class _Measured(DifferentiableInterpreter):
    """Notes the largest magnitude of each gradient when backward makes it."""

    def __init__(self, module: fx.GraphModule, largest: dict[str, torch.Tensor]) -> None:
        super().__init__(module)
        self._largest = largest

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        inner = isinstance(result, torch.Tensor) and n.op == "call_function"
        if inner and result.requires_grad and result.is_floating_point():
            result.register_hook(partial(_note, self._largest, n.name))
        return result


def _note(largest: dict[str, torch.Tensor], name: str, gradient: torch.Tensor) -> None:
    """Note the largest magnitude of a gradient; for one that is computed twice, of both."""
    with torch.no_grad():
        found = torch.linalg.vector_norm(gradient.detach(), float("inf"))
        before = largest.get(name)
        largest[name] = found if before is None else torch.maximum(before, found)


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    if gradient is None or gradient.layout is torch.strided:
        return None if gradient is None else gradient.detach()
    return gradient.detach().to_dense()


class _Exact(DifferentiableInterpreter):
    """Computes in FP64 what a graph computes in FP32, on the random numbers of FP32."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or not draws(n):
            return fx.node.map_aggregate(super().run_node(n), _widened)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        narrow = fx.node.map_aggregate((args, kwargs), _narrowed)
        made = n.target(*narrow[0], **narrow[1])  # type: ignore[operator]
        return fx.node.map_aggregate(made, _widened)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        return super().call_function(
            target, fx.node.map_aggregate(args, wide), fx.node.map_aggregate(kwargs, wide)
        )


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, torch.Tensor) and value.dtype is torch.float32
    return value.double() if is_narrow else value


def _narrowed(value: Any) -> Any:
    is_wide = isinstance(value, torch.Tensor) and value.dtype is torch.float64
    return value.float() if is_wide else value
