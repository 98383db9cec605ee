"""The ways to run a training step that are compared: eager, autocast, `torch.compile`, ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.speed.devices import at_hand
from mpcompile.speed.least_time import bound
from mpcompile.speed.timing import Stepper
from mpcompile.step.transformed import Choices


@dataclass(frozen=True)
class Variant:
    """A way to run a training step.

    Attributes:
        peer: whether it is a peer to compare with; if not, it is mpcompile ("ours").
        cast: whether autocast (a peer) or mpcompile (ours) uses 16 bits.
        compiled: whether inductor makes the code.
        fused: whether a peer's optimizer is the fused one, if PyTorch has it.
        precision: ours: the 16-bit dtype; None: that of the device.
        mode: the mode of `torch.compile`.
        tf32: whether FP32 matmuls, convolutions and RNNs on CUDA may use TF32; None: PyTorch's
            defaults, which allow it for convolutions and RNNs, and not for matmuls.
        information: whether it is never compared, and run once only.
        options: ours: options of inductor that are switched on.
    """

    peer: bool
    cast: bool = True
    compiled: bool = True
    fused: bool = False
    precision: str | None = None
    mode: str = "default"
    tf32: bool | None = None
    information: bool = False
    options: tuple[str, ...] = ()


VARIANTS: dict[str, Variant] = {
    "ours": Variant(peer=False),
    "ours-autotune": Variant(peer=False, options=("max_autotune",)),
    "compiled": Variant(peer=True, fused=True),
    "compiled-autotune": Variant(peer=True, fused=True, mode="max-autotune"),
    "compiled-cudagraphs": Variant(peer=True, fused=True, mode="reduce-overhead"),
    "compiled-fp32": Variant(peer=True, cast=False, fused=True),
    "autocast": Variant(peer=True, compiled=False),
    "fp32": Variant(peer=True, cast=False, compiled=False, tf32=False),
    "tf32": Variant(peer=True, cast=False, compiled=False, tf32=True),
    "ours-interpreter": Variant(peer=False, compiled=False, precision="float16", information=True),
}


def stepper(workload: Workload, variant: Variant, device: str) -> Stepper:
    """Make a step: in FP16 on CUDA, in BF16 on the CPU, whose FP16 kernels are very slow.

    Args:
        workload: a fresh workload; it is trained.
        variant: the way to run the step.
        device: the model's device, ``"cpu"`` or ``"cuda"``.
    """
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    if variant.peer:
        return peer(workload, variant, dtype, device)
    return ours(workload, variant, dtype)


def ours(workload: Workload, variant: Variant, dtype: torch.dtype) -> Stepper:
    """Compile the step with mpcompile."""
    assert workload.loss is not None
    assert workload.optimizer is not None
    name = variant.precision or str(dtype).removeprefix("torch.")
    precision = {"float16": Precision.FP16, "bfloat16": Precision.BF16}[name]
    backend: Any = "inductor" if variant.compiled else "interpreter"
    options = dict.fromkeys(variant.options, True)
    choices = Choices(policy=Policy(precision=precision), whole=False)
    step = to_step(transform(workload, choices), Lowering(backend, options=options))
    batch = workload.batch

    def least() -> float | None:
        device = at_hand(batch[0].device.type)
        known = step.captured.in_pieces is None  # the kernels of pieces are not known
        return bound(step.step, device).seconds if device and known else None

    notes = [name, backend, *variant.options]
    return Stepper(
        lambda: step(*batch), lambda: (step.loss_scale, step.skipped), ", ".join(notes), least
    )


def peer(workload: Workload, variant: Variant, dtype: torch.dtype, device: str) -> Stepper:
    """Make a hand-written step: autocast, `GradScaler` if the dtype is FP16, optimizer."""
    assert workload.loss is not None
    assert workload.optimizer is not None
    model, batch, optimizer = workload.model, workload.batch, workload.optimizer
    if variant.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = variant.tf32
        torch.backends.cudnn.allow_tf32 = variant.tf32
    notes = [str(dtype).removeprefix("torch.") if variant.cast else "float32"]
    if variant.fused:
        optimizer, fused = with_fused_step(optimizer, device)
        notes.append(f"{type(optimizer).__name__} {'fused' if fused else 'not fused'}")
    loss = workload.loss
    if variant.compiled:
        loss = torch.compile(loss, mode=None if variant.mode == "default" else variant.mode)
        notes.append(f"torch.compile {variant.mode}")
    scaler = torch.amp.GradScaler(device, enabled=variant.cast and dtype is torch.float16)
    notes.append("GradScaler" if scaler.is_enabled() else "no scaler")

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=variant.cast):
            args, named = batch.arguments(batch)
            returned = loss(model, *args, **named)
        value: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
        torch.autograd.backward(scaler.scale(value))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return Stepper(step, lambda: (scaler.get_scale(), None), ", ".join(notes))


def with_fused_step(
    optimizer: torch.optim.Optimizer, device: str
) -> tuple[torch.optim.Optimizer, bool]:
    """Return the same optimizer with ``fused=True``, or itself if there is no fused kernel."""
    make: Any = type(optimizer)
    trial = torch.nn.Parameter(torch.zeros(2, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        make([trial], lr=0.1, fused=True).step()
    except (RuntimeError, TypeError):  # no kernel for this device; no such argument
        return optimizer, False
    groups = [
        {key: value for key, value in group.items() if key not in ("fused", "foreach")}
        for group in optimizer.param_groups
    ]
    return make(groups, lr=0.1, fused=True), True  # every group has its own lr
