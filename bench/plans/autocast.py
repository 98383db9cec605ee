"""Run ``torch.autocast`` with the op lists of a CUDA device, on fake CPU tensors.

The lists of ops that autocast casts differ between devices; this comparison needs CUDA's. Fake CUDA
tensors go through autocast without a GPU, but autograd refuses them. So `cuda_policies` replaces
the CPU's policies in PyTorch's dispatcher by CUDA's: each op does the same as PyTorch's own wrapper
on CUDA. The lists are read from the header that is installed with torch, so they are those of the
installed version. `dtypes` uses PyTorch's own CUDA autocast, on fake CUDA tensors without autograd;
tests compare the two node by node.

Two kinds of ops differ from the CPU: LSTM, GRU and RNN are cast as one op, as for cuDNN
(``aten/src/ATen/cudnn/AutocastRNN.cpp``), and softmax widens inside its kernel.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from mpcompile.program.capture import Forward
from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.tensors import fake_mode

Kernel = Callable[..., Any]
_HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
_CUDNN = ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
# The CPU's autocast lists these ops, CUDA's does not: there they run in their inputs' dtype.
_CPU_ONLY = (
    "adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d cat conv1d.padding conv2d.padding "
    "conv3d.padding cross_entropy_loss ctc_loss.IntList ctc_loss.Tensor grid_sampler_2d "
    "grid_sampler_3d index_copy max_pool3d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d replication_pad3d stack trace"
).split()


def op_list(macro: str) -> list[str]:
    """Return an op list of the installed torch's autocast header, with items like ``softmax.int``.

    Args:
        macro: its name, without the ``AT_FORALL_`` in front.

    Raises:
        LookupError: the header has no such list.
    """
    text = _HEADER.read_text()
    found = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)+.*)", text)
    if found is None:
        raise LookupError(f"{_HEADER} has no AT_FORALL_{macro}")
    names = re.findall(r"_\((\w+)(?:, *(\w+))?\)", found[1])
    return [f"{name}.{overload}" if overload else name for name, overload in names]


class _Policies:
    """Kernels, and the copies of weights that autocast keeps until the region ends."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Cast like autocast: floating-point tensors except FP64, and each weight once."""
        if isinstance(value, list | tuple):
            return type(value)(self.cast(item, dtype) for item in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in (torch.float64, dtype):
            return value
        if dtype is not self.dtype or not (value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = (value, value.to(dtype))
        return self.copies[id(value)][1]

    def lower(self, op: Kernel, *args: Any, **kwargs: Any) -> Any:
        """Run in 16 bits."""
        return op(*self.cast(args, self.dtype), **self._all(kwargs, self.dtype))

    def full(self, op: Kernel, *args: Any, **kwargs: Any) -> Any:
        """Run in FP32."""
        return op(*self.cast(args, torch.float32), **self._all(kwargs, torch.float32))

    def full_result(self, op: Kernel, *args: Any, **kwargs: Any) -> Any:
        """Read any dtype; return FP32, unless the caller gave a dtype."""
        if kwargs.get("dtype") is None and args[0].dtype in NARROW:
            kwargs["dtype"] = torch.float32
        return op(*args, **kwargs)

    def softmax(self, op: Kernel, *args: Any) -> Any:
        """Read any dtype; return FP32: the kernel widens its input (``half_to_float``)."""
        value, dim = args[:2]
        if len(args) == 2 and value.dtype in NARROW:
            aten = torch.ops.aten
            inner = aten._softmax if op is aten.softmax.int else aten._log_softmax
            return inner(value, dim, True)
        return op(*args)

    def widest(self, op: Kernel, *args: Any, **kwargs: Any) -> Any:
        """Run in FP32 if an argument is FP32, else in 16 bits."""
        found: list[Tensor] = []
        fx.node.map_aggregate((args, kwargs), lambda item: _collect(item, found))
        wide = any(item.dtype is torch.float32 for item in found)
        return (self.full if wide else self.lower)(op, *args, **kwargs)

    def _all(self, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return {key: self.cast(value, dtype) for key, value in kwargs.items()}


def _collect(item: Any, found: list[Tensor]) -> Any:
    if isinstance(item, Tensor):
        found.append(item)
    return item


@contextmanager
def cuda_policies(dtype: torch.dtype = torch.float16) -> Iterator[Callable[[bool], None]]:
    """Replace the CPU's autocast by CUDA's; yield a function that begins and ends a region.

    Args:
        dtype: the 16-bit format.
    """
    policies = _Policies(dtype)
    kernels: dict[str, Kernel] = {}
    for macro, policy in (
        ("LOWER_PRECISION_FP", policies.lower),
        ("FP32", policies.full),
        ("FP32_SET_OPT_DTYPE", policies.full_result),
        ("PROMOTE", policies.widest),
    ):
        kernels |= dict.fromkeys(op_list(macro), policy)
    kernels |= dict.fromkeys(_CUDNN, policies.lower)
    kernels |= dict.fromkeys(("softmax.int", "log_softmax.int"), policies.softmax)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid.*")
        for name, policy in kernels.items():
            packet, _, overload = name.partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, partial(_excluded, policy, op), "AutocastCPU")
        for name in _CPU_ONLY:
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")

    def switch(on: bool) -> None:
        policies.copies.clear()
        torch.set_autocast_dtype("cpu", dtype)
        torch.set_autocast_enabled("cpu", on)

    before = torch.get_autocast_dtype("cpu")
    try:
        yield switch
    finally:
        switch(False)
        torch.set_autocast_dtype("cpu", before)
        del library  # this restores PyTorch's own kernels


def _excluded(policy: Kernel, op: Kernel, *args: Any, **kwargs: Any) -> Any:
    """Run a policy with autocast off inside the op, like PyTorch's wrappers."""
    with torch.autocast("cpu", enabled=False):
        return policy(op, *args, **kwargs)


def under_autocast(forward: Forward, switch: Callable[[bool], None]) -> Forward:
    """Return a forward pass that runs under autocast; as documented, its backward does not.

    Args:
        forward: the FP32 forward pass, not changed.
        switch: the function from `cuda_policies`.
    """

    def begin() -> None:
        switch(True)

    def end() -> None:
        switch(False)

    module = copy_graph(forward.module)
    first = next(iter(module.graph.nodes))
    output = module.graph.output_node()
    with module.graph.inserting_before(first):
        module.graph.call_function(begin)
    with module.graph.inserting_before(output):
        module.graph.call_function(end)
    return replace(forward, module=module)


def dtypes(forward: Forward, device: str) -> dict[str, torch.dtype]:
    """Return the dtype of each forward op's result under PyTorch's own autocast in FP16.

    Args:
        forward: the FP32 forward pass.
        device: the device of the fake tensors. ``"cuda"`` needs no GPU; ``"cpu"`` needs a call
            inside `cuda_policies`.

    Raises:
        RuntimeError: an op cannot run on fake tensors of a missing device.
    """
    found: dict[str, torch.dtype] = {}

    class Noting(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.op == "call_function" and isinstance(result, Tensor):
                found[node.name] = result.dtype
            return result

    def moved(item: Any) -> Any:
        return place if isinstance(item, torch.device) else item

    place = torch.device(device, 0) if device != "cpu" else torch.device(device)
    module = copy_graph(forward.module)
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    before = torch.get_autocast_dtype(device)
    with fake_mode(), torch.no_grad():
        inputs = [
            torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=place) for v in values
        ]
        # `torch.autocast("cuda")` itself checks for a GPU.
        torch.set_autocast_dtype(device, torch.float16)
        torch.set_autocast_enabled(device, True)
        try:
            Noting(module).run(*inputs, enable_io_processing=False)
        finally:
            torch.set_autocast_enabled(device, False)
            torch.set_autocast_dtype(device, before)
            torch.clear_autocast_cache()
    return found
