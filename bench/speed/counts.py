"""Count the casts, kernels and floating-point operations of a training step.

Only casts between FP32 and a 16-bit format count. In an eager step they are the ``_to_copy`` ops
that reach the dispatcher. Each is a kernel, and its bytes are those that it reads and writes. In a
compiled step, a peer's or ours, they are the ``convert_element_type`` nodes of every graph that
inductor compiles, after all its graph passes. Their bytes are those of the result, as if each were
written to memory. Most are not written, because inductor fuses them into the kernels around them,
and it widens values for FP32 arithmetic inside kernels. So casts of graph inputs (weights, a batch)
are counted apart: these at least are read from memory in the wider or narrower format.

This module uses private settings of inductor; no module that users import needs them.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mpcompile.program.node_tensors import NARROW
from mpcompile.program.workload import Workload
from mpcompile.speed.timing import Step
from mpcompile.torch_private.tracing import DispatchMode

_LAUNCHES = frozenset(
    "cudaLaunchKernel cudaLaunchKernelExC cuLaunchKernel cuLaunchKernelEx cudaGraphLaunch".split()
)


@dataclass
class Casts:
    """Conversions between FP32 and 16 bits in one step.

    Attributes:
        casts: how many casts.
        bytes: bytes that they move; see the module.
        of_inputs: how many of them read a graph input; None for an eager step, which has no graph.
        bytes_of_inputs: bytes that those move.
    """

    casts: int = 0
    bytes: int = 0
    of_inputs: int | None = None
    bytes_of_inputs: int | None = None

    def document(self) -> dict[str, int | None]:
        """Return the numbers by name."""
        return asdict(self)


def changes_width(before: torch.dtype, after: torch.dtype) -> bool:
    """Return whether one is FP32 and the other a 16-bit format."""
    return (before is torch.float32 and after in NARROW) or (
        before in NARROW and after is torch.float32
    )


class _Watching(DispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Casts()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = op(*args, **(kwargs or {}))
        if op is torch.ops.aten._to_copy.default and changes_width(args[0].dtype, result.dtype):
            self.found.casts += 1
            self.found.bytes += args[0].numel() * (args[0].itemsize + result.itemsize)
        return result


def eager_casts(step: Step) -> Casts:
    """Run one step and count its casts, in forward and backward."""
    watching = _Watching()
    with watching:
        step()
    return watching.found


@dataclass
class CompiledCasts:
    """Counts of casts in all graphs that inductor compiles after `watch`."""

    found: Casts = field(default_factory=lambda: Casts(0, 0, 0, 0))

    def watch(self) -> None:
        """Start to count in every graph that inductor compiles in this process."""
        inductor_config.post_grad_custom_post_pass = _Look(self.found)

    def document(self) -> dict[str, int | None]:
        """Return the numbers by name."""
        return self.found.document()


class _Look(CustomGraphPass):
    """A pass that counts and changes nothing, so its identity for the caches is a constant."""

    def __init__(self, found: Casts) -> None:
        self.found = found

    def __call__(self, graph: fx.Graph) -> None:
        add_casts(graph, self.found)

    def uuid(self) -> str:
        return "mpcompile bench: counts casts"


def add_casts(graph: fx.Graph, found: Casts) -> None:
    """Add the casts of one graph to those found so far."""
    for node in graph.nodes:
        if node.target is not torch.ops.prims.convert_element_type.default:
            continue
        source, value = node.args[0], node.meta["val"]
        if not changes_width(source.meta["val"].dtype, value.dtype):
            continue
        size = int(value.numel()) * value.element_size()
        found.casts += 1
        found.bytes += size
        if source.op == "placeholder":
            found.of_inputs = (found.of_inputs or 0) + 1
            found.bytes_of_inputs = (found.bytes_of_inputs or 0) + size


def generated_kernels() -> int:
    """Return how many kernels inductor has generated in this process, without library kernels."""
    return int(metrics.generated_kernel_count)


def launched(step: Step) -> dict[str, int]:
    """Count one step on CUDA: ``kernels`` run, ``copies`` (and fills), ``launches``.

    A replayed CUDA graph is one launch of many kernels.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    kinds = [event.get("cat", "") for event in events]
    names = [event.get("name", "") for event in events]
    return {
        "kernels": kinds.count("kernel"),
        "copies": kinds.count("gpu_memcpy") + kinds.count("gpu_memset"),
        "launches": sum(name in _LAUNCHES for name in names),
    }


def model_flops(workload: Workload) -> int:
    """Return the floating-point operations of matmuls and convolutions in forward and backward.

    torch counts on tensors without values, so attention counts as the whole square, masked or
    not. The workload is not changed.
    """
    assert workload.loss is not None
    model = copy.deepcopy(workload.model).to("meta")
    batch = tuple(value.to("meta") for value in workload.batch)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(workload.loss(model, *batch))
    return int(counter.get_total_flops())
