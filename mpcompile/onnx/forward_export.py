"""Write a model's forward pass in mixed precision as an ONNX graph, for inference."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch

from mpcompile.artifacts import check_file
from mpcompile.errors import BadInput, CannotCapture
from mpcompile.onnx.rewrite import Rewritten, rewrite
from mpcompile.onnx.tidying import check, exported
from mpcompile.onnx_graph.gate import write_model
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.policy import Policy
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tracing import map_tensors

_LSTM = torch.ops.aten.lstm.input


def export_forward(
    workload: Workload,
    path: Path,
    policy: Policy | None = None,
    *,
    target: Target = Target.ANY,
    dynamic: bool = False,
    force: bool = False,
) -> Rewritten:
    """Write ``model(*inputs)`` in evaluation mode; weights are FP16 where the plan says so.

    The inputs are the first elements of the batch, as many as the model's ``forward`` takes. Of a
    dictionary they are what ``forward`` has names for; if there is a loss, all but ``labels``.
    Inputs and outputs keep their dtypes.

    Args:
        workload: the program; its model is not changed.
        path: path of the ONNX file.
        policy: default: FP16 by the op table.
        target: the device on which the graph must run.
        dynamic: whether the first dimension of every input is left open.
        force: whether the file may be replaced.

    Raises:
        BadInput: the model does not take the batch, or the file exists and ``force`` is False.
        CannotCapture: the model cannot become one graph, or not an ONNX graph.
    """
    check_file(path, force)
    model = copy.deepcopy(workload.model).eval().cpu()
    inputs, named = map_tensors(torch.Tensor.cpu, _inputs(model, workload))
    shapes: Any = map_tensors(_open, inputs)
    if named:
        names = list(inspect.signature(model.forward).parameters)
        shapes = dict(zip(names, shapes, strict=False)) | map_tensors(_open, named)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model, inputs, named, dynamic_shapes=shapes if dynamic else None, strict=False
            )
    except Exception as error:  # the user's model or any layer of torch.export can raise anything
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise CannotCapture(
            f"the model cannot become one graph ({type(error).__name__}: {line[:200]})",
            workload.origin,
            "try again without a dynamic batch size" if dynamic else "see docs/onnx-training.md",
        ) from error
    if any(isinstance(m, torch.nn.LSTM) and m.proj_size for m in model.modules()):
        # ONNX's LSTM has no projection, and the exporter makes an invalid graph for one.
        table = torch.export.default_decompositions()
        program = program.run_decompositions({_LSTM: table[_LSTM]})
    full = exported(program)
    check(full, workload.origin)
    done = rewrite(full, policy, target=target)
    check(done.model, workload.origin)
    write_model(done.model, path, force)
    return done


def _open(value: torch.Tensor) -> dict[int, Any] | None:
    return {0: torch.export.Dim.DYNAMIC} if value.dim() else None


def _inputs(model: torch.nn.Module, workload: Workload) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the named arguments of the model."""
    batch = workload.batch
    if batch.structure is None:
        return tuple(batch[: _taken(model, workload)]), {}
    inputs, named = batch.arguments(batch)
    if workload.loss is None:
        return inputs, dict(named)
    known = inspect.signature(model.forward).parameters
    return inputs, {k: value for k, value in named.items() if k in known and k != "labels"}


def _taken(model: torch.nn.Module, workload: Workload) -> int:
    """Return how many elements of the batch the model's forward takes."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds: Any = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return len(workload.batch)
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(needed) > len(workload.batch):
        raise BadInput(
            f"the model's forward takes {len(needed)} inputs, but the batch has "
            f"{len(workload.batch)}",
            workload.origin,
            "give the model's inputs as the first elements of the batch",
        )
    return len(needed)
