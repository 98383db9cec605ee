"""Memory of tensors that ONNX Runtime reads and writes in place, on a CPU or on CUDA."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from mpcompile.errors import BadInput
from mpcompile.onnx.train_file import TensorSpec

Array = NDArray[Any]

_HOST = 1
"""The CPU's number in DLPack, dmlc.github.io/dlpack/latest/c_api.html."""


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """Return a tensor's dtype for NumPy."""
    return np.dtype(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else spec.dtype)


class Memory:
    """One tensor's memory, whose address never changes.

    Attributes:
        spec: name, dtype and shape.
        value: the runtime's value to bind to inputs and outputs of a session.

    Raises:
        BadInput: the device has not enough memory for it.
    """

    def __init__(self, spec: TensorSpec, device: str) -> None:
        self.spec = spec
        self._dtype = dtype_of(spec)
        self._host: Array | None = None
        try:
            if device == "cpu":
                # The runtime uses our array, so reading and writing do not need the runtime.
                self._host = np.zeros(spec.shape, self._dtype)
                self.value = _runtime_view(self._host)
            else:
                element = ir.DataType.from_numpy(self._dtype).value
                self.value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    list(spec.shape), element, device
                )
        except (MemoryError, ValueError, RuntimeError) as error:
            what = f"there is not enough memory for {spec.name}, {spec.dtype}{list(spec.shape)}"
            raise BadInput(what, fix="export a step for a smaller batch") from error

    def read(self) -> Array:
        """Return a copy on the host."""
        if self._host is not None:
            return self._host.copy()
        if self.spec.dtype == "bfloat16":  # NumPy has no such format, so the runtime returns none
            array = np.empty(self.spec.shape, self._dtype)
            _runtime_view(array).update_inplace(self.value)
            return array
        return np.array(self.value.numpy())

    def write(self, array: Array) -> None:
        """Copy an array of exactly this dtype and shape into it."""
        if self._host is not None:
            np.copyto(self._host, array)
        elif self.spec.dtype == "bfloat16":
            self.value.update_inplace(_runtime_view(np.array(array, order="C")))
        else:
            self.value.update_inplace(array)

    def take(self, given: object) -> None:
        """Copy a caller's array into it, or a tensor of any library on any device.

        Args:
            given: has ``__dlpack__`` or ``__array__``.

        Raises:
            BadInput: it has neither method, or the dtype or shape differs.
        """
        if self._host is None and _is_on_other_device(given):
            value = onnxruntime.OrtValue.from_dlpack(given)
            kind = ir.DataType(value.element_type()).numpy()
            self._check(kind, tuple(value.shape()))
            self.value.update_inplace(value)
            return
        array = self._array(given)
        self._check(array.dtype, array.shape)
        self.write(array)

    def _array(self, given: object) -> Array:
        if isinstance(given, np.ndarray):
            return given
        try:
            if hasattr(given, "__dlpack__"):
                return np.from_dlpack(given)
            if hasattr(given, "__array__"):
                return np.asarray(given)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            what = f"{self.spec.name} cannot be read as an array ({' '.join(str(error).split())})"
            raise BadInput(what.rstrip(". "), fix="give a NumPy array") from error
        what = f"{self.spec.name} is a {type(given).__name__}, not an array"
        raise BadInput(what, fix="give a NumPy array, or a tensor with __dlpack__")

    def _check(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        if dtype != self._dtype or shape != self.spec.shape:
            raise BadInput(
                f"{self.spec.name} is {dtype}{list(shape)}, but the step was exported for "
                f"{self.spec.dtype}{list(self.spec.shape)}",
                fix="export another step for this shape, or drop the last, smaller batch",
            )


def _runtime_view(array: Array) -> Any:
    """Return the runtime's view of an array."""
    element = ir.DataType.from_numpy(array.dtype).value
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)


def _is_on_other_device(given: Any) -> bool:
    where = getattr(given, "__dlpack_device__", None)
    return where is not None and where()[0] != _HOST
