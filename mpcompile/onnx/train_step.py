"""`OrtTrainStep`: a training step in a ``train.onnx``, run in stock ONNX Runtime without torch."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime

from mpcompile.errors import BadInput
from mpcompile.onnx.device_memory import Array, Memory
from mpcompile.onnx.train_file import Piece, TensorSpec
from mpcompile.onnx.train_reader import loss_spec, read_train_step
from mpcompile.onnx.train_state import read_state, write_state
from mpcompile.onnx_graph.gate import write_model
from mpcompile.validation import short

TAKEN, SKIPPED = "steps_taken", "steps_skipped"
"""Slots of the counters, as `mpcompile.passes.step.count_steps` names them."""

_QUIET = 4
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Loss:
    """A loss on the device: reading it waits for its step and copies one number.

    It is a 0-d FP32 array to NumPy (``np.asarray(loss)``) and a number to Python.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory: Memory | None = memory
        self._value: Array | None = None

    def settle(self) -> Array:
        """Return it as an array on the host, which later steps do not overwrite."""
        if self._memory is not None:
            self._value, self._memory = self._memory.read(), None
        assert self._value is not None
        return self._value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self.settle()
        kind = array.dtype if dtype is None else np.dtype(dtype)
        return array.astype(kind, copy=bool(copy) or kind != array.dtype)

    def __float__(self) -> float:
        return float(self.settle())

    def __repr__(self) -> str:
        return f"Loss({float(self):g})"


class OrtTrainStep:
    """One training step from ONNX files: call it with a batch to get the loss.

    State stays on the device. The runtime cannot share memory between an input and an output, so
    each written slot has two memories. One step reads the first and writes the second, the next
    step does the reverse, and nothing is copied. A step that is skipped for an Inf or NaN in its
    gradients keeps all state but loss scale, tracker and counter bit-identical, as in `TrainStep`.

    Attributes:
        file: the content of ``train.json``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[Any] | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        cuda_graph: bool = False,
        threads: int | None = None,
    ) -> None:
        """Read ``train.onnx`` and, next to it, ``train.json`` and the weights; all untrusted.

        Args:
            path: path of the ``.onnx`` file.
            providers: ONNX Runtime's execution providers; default: the device's own.
            device: where state is stored and the step runs. On CUDA it is an error if a node would
                run on the CPU.
            cuda_graph: whether to capture the step as CUDA graphs in the first two calls.
            threads: threads of one op on a CPU; default: ONNX Runtime chooses.

        Raises:
            BadInput: a file is missing or damaged, the files do not fit together, or the runtime
                cannot run the step on the device.
        """
        if device not in ("cpu", "cuda"):
            raise BadInput(f"the device is {short(device)}", fix="give 'cpu' or 'cuda'")
        if cuda_graph and device != "cuda":
            raise BadInput(
                "cuda_graph=True needs the device 'cuda'", fix="leave out cuda_graph=True"
            )
        path = Path(path)
        self.file, model, first = read_train_step(path)
        self.device = device
        self._session = _open(model, path, device, providers, cuda_graph, threads or 0)
        self._state = {
            slot.name: tuple(Memory(slot, device) for _ in range(2 if slot.next else 1))
            for slot in self.file.state
        }
        self._batch = [Memory(spec, device) for spec in self.file.batch]
        self._rates = {
            rate.group: Memory(TensorSpec(rate.name, "float64", ()), device)
            for rate in self.file.rates
        }
        self._loss = [Memory(loss_spec(self.file), device) for _ in range(2)]
        self._given: list[weakref.ref[Loss] | None] = [None, None]
        self._turn = 0
        self._bindings = [self._bind(turn) for turn in (0, 1)]
        self._options = [_run_options(turn if cuda_graph else None) for turn in (0, 1)]
        self._known: dict[int, float] = {}
        for rate in self.file.rates:
            self.set_rate(rate.initial, rate.group)
        self._set_state(first)

    def __call__(self, *batch: object) -> Loss:
        """Run one step.

        Args:
            batch: arrays with the shapes and dtypes of the exported step, in order. NumPy arrays,
                or arrays of any library with ``__dlpack__``.

        Returns:
            The unscaled loss before the update; it stays on the device until it is read.

        Raises:
            BadInput: the batch does not fit, or the runtime fails; the state does not change then.
        """
        if len(batch) != len(self._batch):
            names = ", ".join(memory.spec.name for memory in self._batch)
            what = f"the step was called with {len(batch)} arrays"
            raise BadInput(what, fix=f"give {len(self._batch)}: {names}")
        for memory, given in zip(self._batch, batch, strict=True):
            memory.take(given)
        turn = self._turn
        held = self._given[turn]
        before = held() if held is not None else None
        if before is not None:
            before.settle()  # this step overwrites the memory of that loss
        try:
            self._session.run_with_iobinding(self._bindings[turn], self._options[turn])
        except Exception as error:  # the runtime's own exceptions share no base class
            raise BadInput(f"the step does not run ({_one_line(error)})") from error
        self._turn = 1 - turn
        loss = Loss(self._loss[turn])
        self._given[turn] = weakref.ref(loss)
        return loss

    @property
    def loss_scale(self) -> float:
        """The current loss scale; 1 if there is none. Reads it from the device."""
        scale = next((slot for slot in self.file.state if slot.role == "scale"), None)
        return 1.0 if scale is None else float(self._current(scale.name).read())

    @property
    def taken(self) -> int:
        """Steps whose update was applied. Reads the counter from the device."""
        return self._count(TAKEN)

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite. Reads the counter from the device."""
        return self._count(SKIPPED)

    @property
    def rates(self) -> dict[int, float]:
        """The learning rate of each of the optimizer's parameter groups that has one."""
        return dict(self._known)

    def set_rate(self, value: float, group: int = 0) -> None:
        """Set a group's learning rate for the next steps.

        Raises:
            BadInput: the step has no such group.
        """
        if group not in self._rates:
            known = ", ".join(map(str, sorted(self._rates))) or "none"
            raise BadInput(
                f"the step has no parameter group {group}", fix=f"give one of the groups: {known}"
            )
        if self._known.get(group) != value:
            self._rates[group].write(np.array(value, np.float64))
            self._known[group] = float(value)

    def state(self) -> dict[str, Array]:
        """Return copies of all state, by slot; BF16 as ``ml_dtypes.bfloat16``."""
        return {name: self._current(name).read() for name in self._state}

    def pieces(self) -> dict[str, Array]:
        """Return copies of the user's own tensors: parameters, buffers and optimizer state.

        Names are those of ``model.state_dict()``; with ``::exp_avg`` after it, the optimizer's
        state of that name for that parameter.
        """
        return self._slices(self.file.pieces)

    def parameters(self) -> dict[str, Array]:
        """Return copies of the model's parameters by name; the FP32 master of each trained one."""
        roles = {slot.name: slot.role for slot in self.file.state}
        return self._slices(
            [
                piece
                for piece in self.file.pieces
                if "::" not in piece.name and roles[piece.slot] in ("master", "constant")
            ]
        )

    def save(self, path: str | Path) -> None:
        """Write all state to a safetensors file; an existing file is replaced in one step.

        Learning rates are not in it; the caller keeps them.

        Raises:
            BadInput: the file cannot be written.
        """
        write_state(Path(path), self.state())

    def load(self, path: str | Path) -> None:
        """Read the state of a file that `save` wrote; nothing changes if it does not fit.

        Raises:
            BadInput: its names, dtypes or shapes are not exactly those of this step.
        """
        self._set_state(read_state(Path(path), self.file.state))

    def _set_state(self, state: dict[str, Array]) -> None:
        for name, array in state.items():
            self._current(name).write(array)

    def _current(self, name: str) -> Memory:
        """Return the memory of a slot's current value."""
        memories = self._state[name]
        return memories[self._turn % len(memories)]

    def _count(self, name: str) -> int:
        if name not in self._state:
            raise BadInput(f"the step has no {name}", fix="export the step again")
        return int(self._current(name).read())

    def _slices(self, pieces: Sequence[Piece]) -> dict[str, Array]:
        whole = {slot: self._current(slot).read().reshape(-1) for slot in {p.slot for p in pieces}}
        return {
            piece.name: whole[piece.slot][piece.start : piece.start + prod(piece.shape)]
            .reshape(piece.shape)
            .copy()
            for piece in pieces
        }

    def _bind(self, turn: int) -> Any:
        """Return a binding that reads one memory of each written slot and writes the other."""
        binding = self._session.io_binding()
        for memory in (*self._batch, *self._rates.values()):
            binding.bind_ortvalue_input(memory.spec.name, memory.value)
        binding.bind_ortvalue_output(self.file.loss, self._loss[turn].value)
        for slot in self.file.state:
            memories = self._state[slot.name]
            binding.bind_ortvalue_input(slot.name, memories[turn % len(memories)].value)
            if slot.next:
                binding.bind_ortvalue_output(slot.next, memories[1 - turn].value)
        return binding


def _open(
    model: ir.Model,
    path: Path,
    device: str,
    providers: Sequence[Any] | None,
    cuda_graph: bool,
    threads: int,
) -> Any:
    """Return a session of a model that the safety gate has accepted."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    # Its threads must not spin between steps: the code that makes the next batch needs the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    # FP32 in the plan means FP32, not TF32, which is the runtime's default.
    cuda = (_CUDA, {"use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))})
    chosen = list(providers) if providers is not None else [cuda if device == "cuda" else _CPU]
    try:
        # The checked bytes are run, even if the file changes in the meantime.
        with tempfile.TemporaryDirectory(prefix="mpcompile-") as folder:
            file = Path(folder) / "train.onnx"
            write_model(model, file)
            session = onnxruntime.InferenceSession(str(file), options, providers=chosen)
    except BadInput:
        raise
    except Exception as error:
        what = f"ONNX Runtime cannot run the step on {device} ({_one_line(error)})"
        raise BadInput(what, str(path)) from error
    if device == "cuda" and _CUDA not in session.get_providers():
        raise BadInput(
            "ONNX Runtime finds no CUDA device here", str(path), "install onnxruntime-gpu and CUDA"
        )
    return session


def _run_options(graph: int | None) -> Any:
    """Return the run options; with a graph's number, a run is captured once and then replayed.

    Each of the two bindings has its own addresses, so each needs its own graph.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _QUIET
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(1 + graph))
    return options


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ")
