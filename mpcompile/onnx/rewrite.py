"""Rewrite an ONNX graph into mixed precision: infer types, describe, plan, insert casts, check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from mpcompile.errors import BadInput, warn
from mpcompile.onnx_graph.constants import mask_constants, saturated, unfit_readers
from mpcompile.onnx_graph.describe import Wants, dataflow
from mpcompile.onnx_graph.gate import OPENED, model_of, read_model
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.kernels import Target, lacking
from mpcompile.onnx_graph.masks import MASK, masked_by
from mpcompile.onnx_graph.nest import Nest, nest_of
from mpcompile.onnx_graph.quantized import quantized_regions
from mpcompile.onnx_graph.values import constant_of
from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names
from mpcompile.passes.onnx.drop_onnx_casts import drop_onnx_casts
from mpcompile.passes.onnx.floor_masked_rows import FLOOR, FloorMaskedRows
from mpcompile.passes.onnx.insert_onnx_casts import InsertOnnxCasts
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.given import decide
from mpcompile.plan.measured import MeasuredOverflow, overruled
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision

IR_WITH_FREE_INITIALIZERS = 4
"""Older versions of the format require that every initializer is also an input."""


@dataclass(frozen=True)
class Rewritten:
    """A graph in mixed precision, with its plan.

    Attributes:
        model: the new graph; the given one is not changed.
        plan: the decisions.
        casts: how many more Cast nodes the graph has than before.
        changed: whether the graph differs from the given one.
        notes: facts for the user, one sentence each.
    """

    model: ir.Model
    plan: Plan
    casts: int
    changed: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A graph that is ready for the planner.

    Attributes:
        model: a copy of the given model, without local functions, with inferred types.
        nest: the ids of its nodes and values.
        flow: the input of the planner.
        notes: the changes made to the copy.
    """

    model: ir.Model
    nest: Nest
    flow: Dataflow
    notes: tuple[str, ...]


def rewrite(
    model: ir.Model | onnx.ModelProto | str | Path,
    policy: Policy | None = None,
    *,
    plan: Plan | None = None,
    ranges: Ranges | None = None,
    target: Target = Target.ANY,
    keep_io: bool = True,
) -> Rewritten:
    """Rewrite an ONNX model into mixed precision.

    Inputs, outputs and nodes keep their names; inputs and outputs by default keep their dtypes. A
    model for which 16 bits gain nothing is returned unchanged.

    Args:
        model: a model, or its path. It may be untrusted.
        policy: default: FP16 by the op table. Overrides match op types (``op:Softmax``), node names
            and the module paths that an exporter wrote into nodes.
        plan: decisions that win over the policy; the plan must be for exactly this graph.
        ranges: the result of `mpcompile.onnx.calibrate` for exactly this graph.
        target: the device on which it must run; an op without a 16-bit kernel there stays in FP32.
        keep_io: whether inputs and outputs keep their dtypes; else they may become 16 bits.

    Raises:
        BadInput: the file is no valid model, or the policy, plan or ranges do not fit it.
    """
    policy = policy or Policy()
    precision = plan.precision if plan else policy.precision
    original = given_model(model)
    prepared = prepare(original, policy, precision, target, keep_io)
    decided = decide(prepared.flow, policy.precision, plan, ranges)
    for sentence in overruled(decided, ranges) if ranges is not None else ():
        warn(sentence, MeasuredOverflow)
    notes = [*prepared.notes, *_saturation(prepared.nest, decided)]
    hideable = _hideable(prepared.nest, decided)
    insert = InsertOnnxCasts(decided, prepared.flow, prepared.nest)
    before = _count(prepared.model)
    if not insert(prepared.model):
        return Rewritten(original, decided, 0, False, _why_unchanged(precision, target))
    if floored := FloorMaskedRows(hideable)(prepared.model):
        notes.append(
            f"{floored} softmaxes read at least {FLOOR:g}, so that a row of which a mask hides all "
            "stays even"
        )
    drop_onnx_casts(prepared.model)
    casts = _count(prepared.model) - before
    return Rewritten(prepared.model, decided, casts, True, tuple(notes))


def prepare(
    model: ir.Model, policy: Policy, precision: Precision, target: Target, keep_io: bool = True
) -> Prepared:
    """Return a copy of a model that is ready for the planner; see `rewrite` for the arguments."""
    own, notes = model.clone(), _opened(model)
    if own.functions:
        InlinePass()(own)
        notes.append("local functions were inlined, so each call gets its own decisions")
    if own.ir_version < IR_WITH_FREE_INITIALIZERS:
        given = [v for v in own.graph.inputs if v.name in own.graph.initializers]
        if given:
            for value in given:
                own.graph.inputs.remove(value)
            notes.append(
                f"{len(given)} weights are no longer inputs, and the IR version is "
                f"{IR_WITH_FREE_INITIALIZERS} instead of {own.ir_version}"
            )
            own.ir_version = IR_WITH_FREE_INITIALIZERS
    if renamed := distinct_onnx_names(own):
        notes.append(f"{renamed} nodes were renamed, because other nodes had the same name")
    infer_types(own)
    nest = nest_of(own.graph)
    opset = own.graph.opset_imports.get("", 1)
    wants = Wants(
        precision,
        {**lacking(nest, opset, precision, target), **quantized_regions(nest)},
        unfit_readers(nest, precision),
        keep_io,
    )
    return Prepared(own, nest, dataflow(nest, opset, policy, wants), tuple(notes))


def given_model(model: ir.Model | onnx.ModelProto | str | Path) -> ir.Model:
    """Return a model given as a path, a proto or onnx_ir; raise BadInput if it is none of them."""
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return model_of(model)
    if isinstance(model, str | Path):
        return read_model(Path(model))
    raise BadInput(
        f"a {type(model).__name__} is not an ONNX model",
        "rewrite",
        "give a path, an onnx.ModelProto or an onnx_ir.Model",
    )


def _saturation(nest: Nest, plan: Plan) -> list[str]:
    """Return a note for each weight whose large numbers become the largest 16-bit number."""
    notes = []
    masks = set(mask_constants(nest))
    for value, name in nest.values.items():
        tensor = constant_of(value)
        if value in masks and Precision.FP16 in plan.storage.get(name, ()):
            notes.append(f"{name} is a softmax mask; its lowest number becomes {MASK:g}")
            continue
        if tensor is None or Precision.FP16 not in plan.storage.get(name, ()):
            continue
        count = saturated(tensor, Precision.FP16)
        if count:
            notes.append(
                f"{count} of {tensor.size} numbers of {name} are beyond FP16's range and became "
                "its largest number, because an override keeps their readers in 16 bits"
            )
    return notes


def _opened(model: ir.Model) -> list[str]:
    """Return a note about dimensions that the file gives as -1."""
    names: tuple[str, ...] = model.meta.get(OPENED, ())
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"a dimension of {names[0]}{more} is -1 in the file; it is taken for unknown"]


def _hideable(nest: Nest, plan: Plan) -> tuple[ir.Node, ...]:
    """Return the softmaxes that a mask may hide a whole row from, if 16 bits change the mask."""
    found: dict[ir.Node, None] = {}
    half = {decision.op for decision in plan.decisions if decision.computes is Precision.FP16}
    for mask in mask_constants(nest):
        narrow = Precision.FP16 in plan.storage.get(nest.values[mask], ())
        tensor = constant_of(mask)
        assert tensor is not None
        masked = masked_by(mask)
        for each in masked.softmaxes if masked else ():
            becomes_inf = not narrow and nest.nodes[each.node] in half
            if ((narrow and each.added) or becomes_inf) and each.may_hide_a_row(tensor):
                found[each.node] = None
    return tuple(found)


def _why_unchanged(precision: Precision, target: Target) -> tuple[str, ...]:
    if precision is Precision.BF16 and target is not Target.CUDA:
        return ("a CPU has no kernels for bf16; choose the target cuda",)
    return ()


def _count(model: ir.Model) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.all_nodes())
