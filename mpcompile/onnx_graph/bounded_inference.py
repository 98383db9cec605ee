"""ONNX's shape inference, bounded in memory and time because models are untrusted.

To follow values, such as shapes that a graph computes, the library allocates memory for every
number that a 1-d tensor claims to have, and a few small constants can multiply to any claim. If a
1-d tensor is not known to be small before, inference runs in a process of its own.
Checked on ONNX 1.23: ``DataPropagationContextImpl::getInputData``.
"""

from __future__ import annotations

import subprocess
import sys
from enum import Enum
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from mpcompile.onnx_graph.values import is_standard

LONGEST = 60.0
"""Seconds after which values are not followed."""

_FOLLOWED = frozenset("Add Cast Concat Gather Mul Shape Size Slice Squeeze Sub Unsqueeze".split())
"""Ops whose values the library follows."""
_MOST_NUMBERS = 1 << 20
_MEMORY, _MEMORY_PER_BYTE = 1 << 28, 64
"""Bytes that the process may use, and more bytes for each byte of the model."""
_PROGRAM = """
import sys
import onnx
model = sys.stdin.buffer.read()
try:
    import resource
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError):
    pass
for strict in (True, False):
    try:
        found = onnx.shape_inference.infer_shapes(
            model, check_type=strict, strict_mode=strict, data_prop=True
        )
    except MemoryError:
        sys.exit(1)
    except Exception:
        continue
    sys.stdout.buffer.write(found.SerializeToString())
    sys.exit(0)
sys.exit(1)
"""


_FAILS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,  # functions that call each other more deeply than it follows
    RuntimeError,
    ValueError,
    MemoryError,
)


class _Claim(Enum):
    LITTLE, UNKNOWN, MUCH = range(3)


def inferred(skeleton: ir.Model) -> onnx.ModelProto | None:
    """Return a model with the types that the library infers, or None if it infers none.

    Args:
        skeleton: a model without large weights.
    """
    encoded = ir.to_proto(skeleton).SerializeToString()
    plain = _infer(encoded, values=False)
    if plain is None:
        return None
    claim = _claim(ir.from_proto(plain))
    if claim is _Claim.LITTLE:
        return _infer(encoded, values=True) or plain
    return (_infer_apart(encoded) if claim is _Claim.UNKNOWN else None) or plain


def _infer(encoded: bytes, values: bool) -> onnx.ModelProto | None:
    for strict in (True, False):
        try:
            found: Any = onnx.shape_inference.infer_shapes(
                encoded, check_type=strict, strict_mode=strict, data_prop=values
            )
        except _FAILS:
            continue
        own: onnx.ModelProto = found
        return own
    return None


def _infer_apart(encoded: bytes) -> onnx.ModelProto | None:
    """Infer with values in another process, whose memory and time are bounded."""
    memory = _MEMORY + _MEMORY_PER_BYTE * len(encoded)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, str(memory)],
            input=encoded,
            capture_output=True,
            timeout=LONGEST,
            check=True,
        )
        found: onnx.ModelProto = onnx.ModelProto.FromString(done.stdout)
    except (OSError, subprocess.SubprocessError, DecodeError):
        return None
    return found


def _claim(model: ir.Model) -> _Claim:
    """Return the count of numbers in the 1-d tensors that the library would follow."""
    found = _Claim.LITTLE
    for node in model.graph.all_nodes():
        if node.op_type not in _FOLLOWED or not is_standard(node):
            continue
        for value in node.inputs:
            if value is None or (value.shape is not None and len(value.shape) != 1):
                continue
            size = None if value.shape is None else value.shape[0]
            if not isinstance(size, int):
                found = _Claim.UNKNOWN
            elif size > _MOST_NUMBERS:
                return _Claim.MUCH
    return found
