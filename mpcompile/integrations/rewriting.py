"""`rewrite`: mixed precision for every supported kind of graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import onnx
import onnx_ir as ir

from mpcompile import integrations
from mpcompile.onnx import rewrite as onnx_rewrite
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    Program = TypeVar("Program", ExportedProgram, ONNXProgram, onnx.ModelProto, ir.Model)


@overload
def rewrite(
    program: str | Path, policy: Policy | None = None, plan: Plan | None = None, **options: Any
) -> ir.Model: ...


@overload
def rewrite(
    program: Program, policy: Policy | None = None, plan: Plan | None = None, **options: Any
) -> Program: ...


def rewrite(
    program: Any, policy: Policy | None = None, plan: Plan | None = None, **options: Any
) -> Any:
    """Rewrite a forward graph into mixed precision.

    Inputs, outputs and parameters keep their dtypes; the casts are nodes of the graph.

    Args:
        program: a ``torch.export.ExportedProgram``, the result of ``torch.onnx.export``, an
            ``onnx.ModelProto``, an ``onnx_ir.Model``, or the path of an ONNX file, which is not
            trusted. It is not changed.
        policy: default: FP16 by the op table.
        plan: decisions that come before those of the policy; it must be of this same program.
        options: for ONNX graphs the options of `mpcompile.onnx.rewrite.rewrite`: ``ranges``,
            ``target``, ``keep_io``.

    Returns:
        A graph of the same kind; for a path an ``onnx_ir.Model``.

    Raises:
        BadInput: the plan is of another graph, overrides of the policy contradict each other, or
            the file is not a valid model.
    """
    if isinstance(program, str | Path | ir.Model):
        return onnx_rewrite.rewrite(program, policy, plan=plan, **options).model
    if isinstance(program, onnx.ModelProto):
        done = onnx_rewrite.rewrite(program, policy, plan=plan, **options)
        return ir.to_proto(done.model) if done.changed else program
    # A late import, so that a tool that rewrites ONNX files does not wait for torch.
    from torch.onnx import ONNXProgram

    if isinstance(program, ONNXProgram):
        done = onnx_rewrite.rewrite(program.model, policy, plan=plan, **options)
        return ONNXProgram(done.model, program.exported_program)
    return integrations.exported_program.rewrite(program, policy, plan, **options)
