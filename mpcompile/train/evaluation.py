"""The model's forward pass in mixed precision, outside training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput
from mpcompile.lower.lower import Backend, full_accumulation
from mpcompile.lower.shared_memory import OwnMemory
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.plan.given import decide
from mpcompile.plan.policy import Policy
from mpcompile.program.batch import laid_out, structure_of
from mpcompile.program.capture import Forward, Input, InputKind, capture
from mpcompile.program.casts import is_cast
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.describe import dataflow
from mpcompile.program.module_modes import evaluation_modes, in_modes
from mpcompile.program.returned import ReturnedTree
from mpcompile.program.unfit_constants import unfit_constants, unfit_reasons
from mpcompile.program.workload import Workload
from mpcompile.step.slices import is_absent
from mpcompile.torch_private.inductor import compiled
from mpcompile.torch_private.tensors import fake_like
from mpcompile.train.changes.situation import Facts, Situation

_Key = tuple[Hashable, ...]
_Run = Callable[[Sequence[torch.Tensor], Mapping[int, torch.Tensor]], Any]


class MixedForward:
    """The forward graphs of a model in evaluation mode, one for each input shape and program.

    Args:
        model: an FP32 model; its mode is not changed.
        policy: plans the graphs.
        backend: see `mpcompile.lower.lower.lower`.
        options: options of inductor.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        policy: Policy,
        backend: Backend,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._policy = model, policy
        self._backend, self._options = backend, options
        self._made: dict[_Key, _Run] = {}
        self._situation: Situation | None = None
        self._of_situation: dict[tuple[Facts, Facts], dict[_Key, _Run]] = {}

    def __call__(
        self,
        inputs: Sequence[torch.Tensor],
        working: Mapping[int, torch.Tensor],
        situation: Situation,
    ) -> Any:
        """Return the model's result; its tensors require no gradient.

        Args:
            inputs: the model's inputs, as a batch.
            situation: how the program is now, beside its modes.
            working: 16-bit copies by the ``id`` of their parameters; the parameters are the same in
                every call.
        """
        if situation is not self._situation:
            self._situation = situation
            facts = situation.layout, situation.program
            self._made = self._of_situation.setdefault(facts, {})
        key: _Key = (
            structure_of(inputs),
            *((value.shape, value.dtype, value.device) for value in inputs),
        )
        if key not in self._made:
            with in_modes(evaluation_modes(self._model)):
                forward = capture(Workload(self._model, inputs))
            self._made[key] = self._lower(self._planned(forward), working)
        return self._made[key](inputs, working)

    def _planned(self, forward: Forward) -> Forward:
        """Insert the casts that the policy asks for."""
        precision = self._policy.precision
        buffers = {
            item.node: item.tensor
            for item in forward.inputs
            if item.kind is InputKind.BUFFER and item.name not in forward.written
        }
        unfit = unfit_constants(forward.module, buffers, precision)
        fixed = {item.node: item.kind.fixed for item in forward.inputs}
        reasons = unfit_reasons(forward.module, unfit)
        flow = dataflow(forward.module, fixed, self._policy, reasons, buffers)
        plan = decide(flow, precision)
        run_passes(forward.module, forward_passes(plan), lambda module: module.graph.lint())
        return forward

    def _lower(self, forward: Forward, working: Mapping[int, torch.Tensor]) -> _Run:
        module, nest = forward.module, forward.returns
        assert nest is not None
        copied = read_working_copies(forward, working)
        given = [None if item.kind is InputKind.BATCH else item for item in forward.inputs]
        output = module.graph.output_node()
        values = output.args[0]
        assert isinstance(values, list | tuple)
        made = values[len(forward.written) :]
        output.args = (tuple(item for item in made if isinstance(item, fx.Node)),)
        module.graph.eliminate_dead_code()
        device = next(iter(self._model.parameters())).device
        if self._backend == "interpreter" and device.type == "cpu":
            emulate_half(module)
        for graph in all_graphs(module):
            graph.graph.lint()
            graph.recompile()
        strides = [i.tensor.stride() for i in forward.inputs if i.kind is InputKind.BATCH]
        return _bound(self._function(module), given, copied, nest, strides)

    def _function(self, module: fx.GraphModule) -> Callable[..., Any]:
        run: Callable[..., Any] = module.forward
        if self._backend == "inductor":
            run = _Compiled(module, self._options)
        return full_accumulation()(run)


def read_working_copies(forward: Forward, working: Mapping[int, torch.Tensor]) -> list[int]:
    """Let a forward graph read working copies instead of its casts of weights.

    Returns:
        The keys of the copies that its last placeholders read.
    """
    graph = forward.module.graph
    copied: list[int] = []
    nodes = list(graph.find_nodes(op="placeholder"))
    last = nodes[-1]
    for item, node in zip(forward.inputs, nodes, strict=True):
        copy = working.get(id(item.tensor))
        casts = [
            user
            for user in node.users
            if copy is not None and is_cast(user) and user.meta["val"].dtype is copy.dtype
        ]
        if copy is None or not casts:
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"{node.name}_working")
        like = node.meta["val"]
        last.meta["val"] = fake_like(like.fake_mode, tuple(like.shape), copy.dtype, like.device)
        for cast in casts:
            cast.replace_all_uses_with(last)
            graph.erase_node(cast)
        copied.append(id(item.tensor))
    for item, node in zip(forward.inputs, nodes, strict=True):
        if is_absent(item.tensor) and node.users:
            raise BadInput(
                f"evaluation reads {item.name} in FP32, but this process holds only a slice of it",
                fix="call the model itself inside `with step.whole():`",
            )
    return copied


def _bound(
    run: Callable[..., Any],
    held: Sequence[Input | None],
    copied: Sequence[int],
    nest: ReturnedTree,
    strides: Sequence[tuple[int, ...]],
) -> _Run:
    open_inputs = [index for index, item in enumerate(held) if item is None]

    def call(inputs: Sequence[torch.Tensor], working: Mapping[int, torch.Tensor]) -> Any:
        # Weights and copies have new storage after another step is compiled that trains them.
        given = [None if item is None else item.value for item in held]
        for index, value, layout in zip(open_inputs, inputs, strides, strict=True):
            given[index] = laid_out(value.detach(), layout)
        given += [working[key] for key in copied]
        with torch.no_grad():
            return nest(run(*given))

    return call


class _Compiled:
    """A graph that inductor compiles at its first call."""

    def __init__(self, module: fx.GraphModule, options: Mapping[str, Any] | None) -> None:
        self._module, self._options = module, options
        self._code: Callable[[list[Any]], Any] | None = None
        self._own = OwnMemory()

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self._code is None:
            [(_, self._code)] = compiled(self._module, inputs, options=self._options)
        return self._own(self._code(list(inputs)), inputs)
