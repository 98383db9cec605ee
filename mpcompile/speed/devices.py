"""The limits of devices as their makers state them: arithmetic, memory and cache.

Sources, by name, all of NVIDIA; rates are dense and at the boost clock:

- H100 SXM: "NVIDIA H100 Tensor Core GPU Architecture" (whitepaper, 2022), table of the SXM5 board.
- H200: "NVIDIA H200 Tensor Core GPU" (datasheet, 2023); arithmetic and L2 are the H100's.
- A100 SXM 80 GB: "NVIDIA A100 Tensor Core GPU" (datasheet, 2021); L2: "NVIDIA A100 Tensor Core GPU
  Architecture" (whitepaper, 2020).
- V100 SXM2: "NVIDIA V100 Tensor Core GPU" (datasheet, 2018); L2: "NVIDIA Tesla V100 GPU
  Architecture" (whitepaper, 2017).

`this_cpu` measures instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

_TERA = 1e12
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """The limits of a device that bound the time of a step.

    Attributes:
        name: its name on a command line.
        title: its maker's name for it.
        rates: the most FLOP/s, by the dtype of a matmul's operands.
        bandwidth: bytes/s to and from memory, reads and writes together.
        cache: bytes that can stay on the chip from one kernel to the next.
    """

    name: str
    title: str
    rates: Mapping[torch.dtype, float]
    bandwidth: float
    cache: int

    def rate(self, dtype: torch.dtype) -> float:
        """Return the most FLOP/s on operands of a dtype; the device's best if it is not known."""
        return self.rates.get(dtype, max(self.rates.values()))


def _gpu(
    name: str,
    title: str,
    tera: tuple[float, float, float, float],
    terabytes: float,
    cache: int,
) -> Device:
    """Return a GPU.

    Args:
        name: see `Device`.
        title: see `Device`.
        tera: TFLOP/s with operands in FP16, BF16, FP32 and FP64. FP32 is TF32 if the device has
            TF32, because a program may allow TF32.
        terabytes: TB/s of memory.
        cache: MiB of L2.
    """
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    rates = {kind: rate * _TERA for kind, rate in zip(kinds, tera, strict=True)}
    return Device(name, title, MappingProxyType(rates), terabytes * _TERA, cache * _MIB)


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            _gpu("h100", "NVIDIA H100 SXM", (989.4, 989.4, 494.7, 66.9), 3.35, 50),
            _gpu("h200", "NVIDIA H200", (989.4, 989.4, 494.7, 66.9), 4.8, 50),
            _gpu("a100", "NVIDIA A100 SXM 80 GB", (312.0, 312.0, 156.0, 19.5), 2.039, 40),
            # No TF32, and BF16 only in software: the rate of its FP32 units.
            _gpu("v100", "NVIDIA V100 SXM2", (125.0, 15.7, 15.7, 7.8), 0.9, 6),
        )
    }
)
"""The known devices by name."""


def at_hand(kind: str) -> Device | None:
    """Return this machine's device: `this_cpu`, or the GPU if `DEVICES` has it.

    Args:
        kind: ``"cpu"`` or ``"cuda"``.
    """
    if kind == "cpu":
        return this_cpu()
    name = torch.cuda.get_device_name().lower()
    return next((device for key, device in DEVICES.items() if key in name), None)


_EDGE = 512
_COPIED = 64 * _MIB
_RUNS = 20


def this_cpu() -> Device:
    """Measure this machine, in about a second, with torch's number of threads.

    Arithmetic: the best of twenty products of two 512 x 512 matrices, per dtype; a 16-bit dtype
    counts at least as fast as FP32, because a kernel may widen its operands. Memory: the best of
    twenty copies of 64 MiB, each byte read and written once. Cache: the last level as Linux reports
    it, or 1 GiB if Linux does not, so that the bound still holds. A short run may not reach the
    machine's limit, so the bound is only as good as the measurement.
    """
    full = _matmul_rate(torch.float32)
    rates = {
        torch.float32: full,
        torch.float64: _matmul_rate(torch.float64),
        torch.float16: max(full, _matmul_rate(torch.float16)),
        torch.bfloat16: max(full, _matmul_rate(torch.bfloat16)),
    }
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target = torch.ones_like(source)
    seconds = _least_seconds(lambda: target.copy_(source))
    title = f"this CPU, {torch.get_num_threads()} threads"
    return Device("cpu", title, MappingProxyType(rates), 2 * _COPIED / seconds, _last_cache())


def _matmul_rate(dtype: torch.dtype) -> float:
    left, right = (torch.ones(_EDGE, _EDGE, dtype=dtype) for _ in range(2))
    return 2 * _EDGE**3 / _least_seconds(lambda: left @ right)


def _least_seconds(function: Callable[[], object]) -> float:
    function()
    seconds = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _last_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the last cache level, or 1 GiB if the system does not report it."""
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=1024 * _MIB)
