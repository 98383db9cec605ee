"""Run a workload in FP32 on real batches and measure every tensor, forward and backward."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import fx

from mpcompile.errors import BadInput
from mpcompile.numerics.narrowing import Narrowings
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.plan.ranges import Range, Ranges, tensors_of
from mpcompile.program.batch import batch_of, laid_out, structure_of
from mpcompile.program.capture import Forward, Input, InputKind, capture
from mpcompile.program.describe import dataflow
from mpcompile.program.node_tensors import is_full
from mpcompile.program.workload import Workload

_PIECE = 1 << 22  # numbers measured at a time, so that a large tensor needs little extra memory
_NO_SIGN, _MANTISSA, _BIAS = 0x7FFFFFFF, 23, 127  # the layout of the bits of an FP32 number
_VALUE, _GRADIENT = "value", "gradient"


def calibrate(workload: Workload, batches: int = 8) -> Ranges:
    """Measure the numbers of a program's tensors, and of the gradients by these tensors.

    All batches use the model's present weights; buffers that forward updates pass from batch to
    batch. Everything runs on copies: the model, the optimizer and the random generators of torch,
    NumPy and Python stay as they were. `Workload.data` is iterated from its start; if it is an
    iterator and not an iterable, the batches are used up afterwards.

    Args:
        workload: runs on its model's device. Without data the example batch is run once. Without a
            loss there are no gradients.
        batches: the largest number of batches.

    Raises:
        BadInput: there is no batch, or a batch has other shapes or dtypes than the example.
        CannotCapture: see `mpcompile.compile`.
    """
    return measure_ranges(workload, capture(workload), batches)


def measure_ranges(workload: Workload, forward: Forward, batches: int) -> Ranges:
    """Measure ranges as `calibrate` does, for a program that is captured already.

    Raises:
        BadInput: see `calibrate`.
    """
    if batches < 1:
        raise BadInput(f"batches is {batches}", fix="give at least 1")
    tally, narrowings = _Tally(), Narrowings()
    data = [workload.batch] if workload.data is None else workload.data
    state = {item.node: item.value for item in forward.inputs}
    buffers = {item.name: item.node for item in forward.inputs if item.kind is InputKind.BUFFER}
    done = 0
    with same_random_numbers(item.tensor.device for item in forward.inputs):
        for batch in islice(data, batches):
            state |= batch_by_node(batch_of(batch, workload.origin), forward, workload)
            written = _run(forward, _trained(forward, workload), state, tally, narrowings)
            state |= {buffers[name]: value for name, value in written.items()}
            done += 1
    if not done:
        raise BadInput("the workload's data gave no batch", workload.origin, "give data=")
    fingerprint = tensors_of(dataflow(forward.module, {}, FULL_PRECISION))
    values, gradients = tally.ranges(_VALUE), tally.ranges(_GRADIENT)
    return Ranges(fingerprint, done, values, gradients, narrowings=narrowings.found())


def range_of(tensor: torch.Tensor) -> Range:
    """Return the range of the numbers of one FP32 tensor of any shape."""
    tally = _Tally()
    tally.add(_VALUE, "", tensor)
    return tally.ranges(_VALUE)[""]


def _run(
    forward: Forward,
    trained: frozenset[str],
    values: dict[str, torch.Tensor],
    tally: _Tally,
    narrowings: Narrowings,
) -> dict[str, torch.Tensor]:
    """Run one batch on copies; return the new values of the buffers that forward writes."""
    given = {name: value.clone() for name, value in values.items()}
    leaves = {name: given[name].requires_grad_() for name in given if name in trained}
    with torch.set_grad_enabled(bool(leaves)):
        meter = _Meter(forward.module, tally, narrowings)
        results = meter.run(*given.values(), enable_io_processing=False)
    if leaves and results[-1].requires_grad:
        gradients = torch.autograd.grad(results[-1], list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                tally.add(_GRADIENT, name, gradient)
    return {name: value.detach() for name, value in zip(forward.written, results, strict=False)}


def _trained(forward: Forward, workload: Workload) -> frozenset[str]:
    groups = workload.optimizer.param_groups if workload.optimizer else []
    parameters = [parameter for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in parameters if parameter.requires_grad}
    return frozenset(item.node for item in forward.inputs if id(item.tensor) in trained)


class _Meter(fx.Interpreter):
    """An interpreter that measures each FP32 tensor, and its gradient when backward makes it."""

    def __init__(self, module: fx.GraphModule, tally: _Tally, narrowings: Narrowings) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._tally, self._narrowings = tally, narrowings

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and measure its result."""
        result = super().run_node(n)
        self._narrowings.measure(n, self.env.__getitem__, result)
        if is_full(n) and isinstance(result, torch.Tensor):
            self._tally.add(_VALUE, n.name, result)
            if result.requires_grad and n.op != "placeholder":
                result.register_hook(partial(self._tally.add, _GRADIENT, n.name))
        return result


class _Tally:
    """Counts per tensor, kept on the tensor's device until `ranges` reads them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], torch.Tensor] = {}
        self._largest: dict[tuple[str, str], torch.Tensor] = {}

    def add(self, what: str, name: str, tensor: torch.Tensor) -> None:
        """Count the numbers of one FP32 tensor; the counts of several batches add up.

        Without the sign bit, the bits of FP32 numbers as integers have the order of the numbers.
        The upper eight of these bits are the exponent.
        """
        key = (what, name)
        dense = tensor.to_dense() if tensor.is_sparse else tensor
        for piece in dense.detach().reshape(-1).split(_PIECE):
            size = piece.contiguous().view(torch.int32) & _NO_SIGN
            counts = torch.bincount(size >> _MANTISSA, minlength=256)
            counts = torch.cat([counts, (size == 0).sum().reshape(1)])
            finite = size.masked_fill(size >= 255 << _MANTISSA, 0)
            largest = torch.cat([finite, finite.new_zeros(1)]).amax()  # 0 for an empty tensor
            if key in self._counts:
                counts = counts + self._counts[key]
                largest = torch.maximum(largest, self._largest[key])
            self._counts[key], self._largest[key] = counts, largest

    def ranges(self, what: str) -> dict[str, Range]:
        """Return the range per name, of values or of gradients."""
        return {
            name: _range(self._counts[kind, name].tolist(), int(self._largest[kind, name]))
            for kind, name in self._counts
            if kind == what
        }


def _range(counts: list[int], largest: int) -> Range:
    """Return the range of a tensor.

    Args:
        counts: the count of each biased exponent, then the count of the zeros.
        largest: the bits of the largest finite magnitude.
    """
    *exponents, nonfinite, zeros = counts
    exponents[0] -= zeros
    return Range(
        largest_finite=struct.unpack("f", struct.pack("i", largest))[0],
        count=sum(counts) - zeros,
        zeros=zeros,
        nonfinite=nonfinite,
        exponents=tuple((e - _BIAS, count) for e, count in enumerate(exponents) if count),
    )


def batch_by_node(
    values: tuple[Any, ...], forward: Forward, workload: Workload
) -> dict[str, torch.Tensor]:
    """Return a batch's tensors by their placeholder nodes, on the example's devices.

    Raises:
        BadInput: the tensors have other shapes or dtypes than the example.
    """
    inputs = [item for item in forward.inputs if item.kind is InputKind.BATCH]
    _check(values, inputs, workload)
    return {
        item.node: laid_out(value.to(item.tensor.device), item.tensor.stride())
        for item, value in zip(inputs, values, strict=True)
    }


def _check(values: Sequence[Any], inputs: Sequence[Input], workload: Workload) -> None:
    if len(values) != len(inputs):
        raise BadInput(
            f"a batch of the data has {len(values)} tensors, but the example batch has "
            f"{len(inputs)}",
            workload.origin,
            "give as many tensors as the example batch has",
        )
    if structure_of(values) != structure_of(workload.batch):
        raise BadInput(
            "a batch of the data has another structure, or other constants, than the example batch",
            workload.origin,
            "give batches like the example",
        )
    for item, value in zip(inputs, values, strict=True):
        like = item.tensor
        if value.shape != like.shape or value.dtype is not like.dtype:
            raise BadInput(
                f"{item.name} is {_type(value)} in the data, but {_type(like)} in the example "
                "batch",
                workload.origin,
                "give batches with the shapes and dtypes of the example; drop a smaller last batch",
            )


def _type(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


@contextmanager
def same_random_numbers(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the random generators at the end of the ``with`` block."""
    cuda = sorted({device.index for device in devices if device.type == "cuda"})
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
