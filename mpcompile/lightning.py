"""A precision plugin for Lightning: ``Trainer(plugins=MPCompilePrecision())``.

This is the only module that imports Lightning; install it with the extra ``mpcompile[lightning]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision

from mpcompile.errors import BadInput
from mpcompile.integrations.dynamo_backend import mpcompile
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.torch_private.tracing import uncompile

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
        self._module: torch.nn.Module | None = None
        self._networks: tuple[torch.nn.Module, ...] = ()

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Compile ``forward`` and each network that a step calls with the backend.

        The steps themselves, with their logging and their loss, stay plain Python; parameters and
        the names in ``state_dict`` do not change.
        """
        options = self._options()
        self._networks = tuple(_networks(module))
        for network in self._networks:
            network.compile(backend=mpcompile, options=dict(options))
        module.forward = torch.compile(module.forward, backend=mpcompile, options=dict(options))
        self._module = module
        return module

    def connect(
        self, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], lr_schedulers: Any
    ) -> tuple[torch.nn.Module, list[torch.optim.Optimizer], Any]:
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
        connected: tuple[torch.nn.Module, list[torch.optim.Optimizer], Any] = super().connect(
            model, optimizers, lr_schedulers
        )
        return connected

    def forward_context(self) -> Any:
        """Return a context that does nothing: the casts are in the compiled steps."""
        return self.tensor_init_context()

    def teardown(self) -> None:
        """Let the module run as it did before."""
        if self._module is not None:
            del self._module.forward
        for network in self._networks:
            uncompile(network)
        self._module, self._networks = None, ()

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


def _networks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the outermost callable submodules that have parameters."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            yield from _networks(child)
        elif next(child.parameters(), None) is not None:
            yield child
