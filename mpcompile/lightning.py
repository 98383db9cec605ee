"""A precision plugin for Lightning: ``Trainer(plugins=MPCompilePrecision())``.

This is the only module that imports Lightning; install it with the extra ``mpcompile[lightning]``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from types import MethodType
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import fx, nn

from mpcompile.errors import BadInput
from mpcompile.integrations.dynamo_backend import settings_of
from mpcompile.pieces.dynamo_graph import Outcome, compile_graph
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.torch_private.tracing import compile_call, compile_guarded, uncompile

_LOG = logging.getLogger("mpcompile")
_WHERE = "MPCompilePrecision"


class MPCompilePrecision(MixedPrecision):
    """Networks with casts by the plan, instead of autocast around the steps.

    The networks run through ``torch.compile(backend="mpcompile")``. With FP16 the loss is scaled,
    and gradients are unscaled before hooks and clipping, as in Lightning's ``16-mixed``. Lightning
    stores the scale in checkpoints under this class's name, so the class must keep its name.

    Args:
        policy: default: FP16 by the op table.
        scaler: default: with FP16 a ``torch.amp.GradScaler()`` of the device, else none.
        backend: ``"interpreter"`` or ``"inductor"``; default: inductor on CUDA.

    Raises:
        BadInput: a scaler is given, but the precision is not FP16.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        scaler: torch.amp.GradScaler | None = None,
        backend: str | None = None,
    ) -> None:
        self._policy = policy or Policy()
        narrow = self._policy.precision is Precision.FP16
        if scaler is not None and not narrow:
            raise BadInput(
                f"a scaler is given, but the precision is {self._policy.precision.value}",
                _WHERE,
                "leave the scaler out; only FP16 needs one",
            )
        super().__init__("bf16-mixed", "cpu")
        # Lightning's name of the nearest precision. Given to `__init__`, it would make Lightning
        # choose a scaler before the device is known.
        self.precision = "16-mixed" if narrow else "bf16-mixed"
        self.scaler = scaler
        self._backend = backend
        self._module: nn.Module | None = None
        self._networks: tuple[nn.Module, ...] = ()
        self._outcomes: list[Outcome] = []
        self._checked = self._policy.changes_nothing

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Compile ``forward`` and each module with parameters that a step may call.

        The steps themselves, with their logging and their loss, stay plain Python; parameters and
        the names in ``state_dict`` do not change. A module within a compiled one is part of its
        graph; it is compiled by itself where a step calls it directly, or after a graph break.
        """
        options = self._options()
        networks = dict(_networks(module))
        for name, network in networks.items():
            compile_call(network, backend=_Backend(name, self._outcomes), options=dict(options))
        own = _Backend("", self._outcomes)
        module.forward = _Forward(module, backend=own, options=dict(options))
        self._networks, self._module = tuple(networks.values()), module
        return module

    def connect(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], lr_schedulers: Any
    ) -> tuple[nn.Module, list[torch.optim.Optimizer], Any]:
        """Make the scaler for the model's device.

        Raises:
            BadInput: an optimizer is L-BFGS, which calls the model several times per step.
        """
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
            raise BadInput(
                "L-BFGS evaluates the loss several times per step, but a loss scale fits one "
                "evaluation",
                _WHERE,
                "choose another optimizer, or train in FP32",
            )
        if self.scaler is None and self._policy.precision is Precision.FP16:
            device = next(model.parameters()).device.type
            self.scaler = torch.amp.GradScaler(device)
        connected: tuple[nn.Module, list[torch.optim.Optimizer], Any] = super().connect(
            model, optimizers, lr_schedulers
        )
        return connected

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Run one step: the casts are in the compiled modules.

        The first step shows whether anything is in 16 bits; if not, a warning says why.
        """
        with self.tensor_init_context():
            yield
        if not self._checked:
            self._checked = True
            _say_if_all_wide(self._outcomes)

    def teardown(self) -> None:
        """Let the module run as it did before."""
        if self._module is not None:
            del self._module.forward
        for network in self._networks:
            uncompile(network)
        self._module, self._networks = None, ()
        self._outcomes.clear()
        self._checked = self._policy.changes_nothing

    def _options(self) -> dict[str, Any]:
        policy = self._policy
        options = {
            "level": policy.level.value,
            "full": policy.full,
            "half": policy.half,
            "free": policy.free,
            "precision": {Precision.FP16: "fp16", Precision.BF16: "bf16", Precision.FP32: "fp32"}[
                policy.precision
            ],
        }
        return options | ({"backend": self._backend} if self._backend else {})


class _Backend:
    """The backend for one module of the model, which notes what became of each graph.

    Args:
        within: the module's name in the model, as overrides have it.
        outcomes: gets one entry per graph.
    """

    def __init__(self, within: str, outcomes: list[Outcome]) -> None:
        self._within, self._outcomes = within, outcomes

    def __call__(
        self, module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Compile one graph of Dynamo."""
        settings = settings_of(options)
        made, outcome = compile_graph(
            module, inputs, settings.policy, settings.backend, self._within
        )
        self._outcomes.append(outcome)
        return made


class _Forward:
    """The compiled ``forward`` of a module; a copy of the module has its own plain ``forward``.

    Args:
        module: the module.
        options: of ``torch.compile``.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        update_wrapper(self, module.forward)  # Lightning asks whether the user has written it
        self._module = module
        self._compiled = compile_guarded(module.forward, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled forward."""
        return self._compiled(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """Return the plain forward of the copy of the module that is being made."""
        copied = memo[id(self._module)]
        return MethodType(type(copied).forward, copied)


def _say_if_all_wide(outcomes: Sequence[Outcome]) -> None:
    if any(outcome.casts for outcome in outcomes):
        return
    reasons = dict.fromkeys(outcome.wide for outcome in outcomes if outcome.wide)
    why = "; ".join(reasons) or (
        "torch.compile made no graph, because the step calls no module that has parameters and is "
        "an attribute of the model, or because torch.compile is switched off"
    )
    _LOG.warning("%s: nothing in the first step computes in 16 bits: %s", _WHERE, why)


def _networks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the callable submodules that have parameters, with their names."""
    for name, child in module.named_modules():
        callable_ = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if name and callable_ and next(child.parameters(), None) is not None:
            yield name, child
