"""The result of a transformation, in numbers and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import log2
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from mpcompile.errors import printable
from mpcompile.passes.order import OPTIONAL
from mpcompile.pieces.whole_plan import WholePlan
from mpcompile.plan.plan import Plan
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.marks import BACKWARD
from mpcompile.step.liveness import peak, saved_bytes, state_bytes, tensor_bytes
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed
from mpcompile.torch_private.ops import is_view, op_name

_COLUMNS = ("f16", "bf16", "f32", "other")
_SHORT = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}


@dataclass(frozen=True)
class Summary:
    """The numbers behind the summary table.

    Attributes:
        ops: per stage (forward, backward, update) the number of ops by the precision they store;
            casts and views are not ops.
        casts_planned: casts that the plan put into the forward graph.
        casts_cleaned: casts that `clean_casts` shared, cancelled, moved or folded.
        casts_hoisted: weights whose cast left the step.
        casts: casts that remain in the step.
        cast_bytes: the bytes that these move if none is fused.
        weights: trained weights.
        working_copies: weights with a 16-bit working copy.
        parameters: trained numbers.
        first_scale: the loss scale of the first step; None: there is none.
        memory: per program (``fp32``, ``mixed``) the estimated bytes of state, of tensors saved
            for backward, and at the peak of the step.
        passes: per optional pass, how often it applied, if it did.
        unknown: per op without a row in the op table, how often it stayed in FP32.
        unfit: per constant that FP16 cannot hold, a sentence with its source position and fix.
    """

    ops: dict[str, dict[str, int]]
    casts_planned: int
    casts_cleaned: int
    casts_hoisted: int
    casts: int
    cast_bytes: int
    weights: int
    working_copies: int
    parameters: int
    first_scale: float | None
    memory: dict[str, dict[str, int]]
    passes: dict[str, int]
    unknown: dict[str, int]
    unfit: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def summarize(mixed: Transformed, full: Transformed, pieces: WholePlan | None = None) -> Summary:
    """Count the ops, casts, weights and bytes of a transformed program.

    Args:
        mixed: the transformed program.
        full: the same workload transformed with `FULL_PRECISION`, for the memory comparison.
        pieces: the plans of its pieces, which are its forward pass; None: it is one graph. Nobody
            knows their backward and memory before they run.
    """
    if pieces is not None:
        return _of_pieces(summarize(mixed, full), pieces.plan)
    stages = _stages(mixed)
    casts = [node for nodes in stages.values() for node in nodes if _is_cast(node)]
    working = mixed.step.working if mixed.step else set()
    scale = mixed.choices.scale
    trained = (
        [s for s in mixed.step.slots.values() if s.role is Role.GRADIENT] if mixed.step else []
    )
    unknown = Counter(d.kind for d in mixed.plan.decisions if d.rule == "unknown")
    return Summary(
        ops={stage: _by_precision(nodes) for stage, nodes in stages.items()},
        casts_planned=mixed.changes.get("insert_casts", 0),
        casts_cleaned=mixed.changes.get("clean_casts", 0),
        casts_hoisted=sum(
            mixed.changes.get(name, 0) for name in ("hoist_weight_casts", "hoist_read_casts")
        ),
        casts=len(casts),
        cast_bytes=sum(
            tensor_bytes(node.meta["val"]) + tensor_bytes(node.all_input_nodes[0].meta["val"])
            for node in casts
        ),
        weights=len(trained),
        working_copies=len(working),
        first_scale=scale.initial if mixed.step and scale.active else None,
        parameters=sum(slot.empty().numel() for slot in trained),
        memory={"fp32": _memory(full), "mixed": _memory(mixed)},
        passes={name: mixed.changes[name] for name in OPTIONAL if mixed.changes.get(name)},
        unknown=dict(sorted(unknown.items())),
        unfit=tuple(f"{item.where}  {item.kind}: {item}" for item in mixed.unfit),
    )


def _of_pieces(summary: Summary, plan: Plan) -> Summary:
    """Put the plan of all pieces in the place of the op that runs them."""
    forward = dict.fromkeys(_COLUMNS, 0)
    for decision in plan.decisions:
        forward[decision.stores.short] += 1
    state = {name: {**held, "saved": 0, "peak": 0} for name, held in summary.memory.items()}
    unknown = Counter(d.kind for d in plan.decisions if d.rule == "unknown")
    return replace(
        summary,
        ops={"forward": forward, "update": summary.ops["update"]},
        casts_planned=len(plan.casts),
        casts=len(plan.casts),
        cast_bytes=sum(cast.bytes for cast in plan.casts),
        memory=state,
        unknown=dict(sorted(unknown.items())),
    )


def _stages(transformed: Transformed) -> dict[str, list[fx.Node]]:
    if transformed.step is None:
        return {"forward": list(transformed.forward.module.graph.nodes)}
    nodes = list(transformed.step.gradient.graph.nodes)
    return {
        "forward": [node for node in nodes if node not in BACKWARD],
        "backward": [node for node in nodes if node in BACKWARD],
        "update": list(transformed.step.update.graph.nodes),
    }


def _is_cast(node: fx.Node) -> bool:
    if op_name(node) != "_to_copy" or not node.all_input_nodes:
        return False
    dtypes = {node.meta["val"].dtype, node.all_input_nodes[0].meta["val"].dtype}
    return len(dtypes) == 2 and dtypes <= set(_SHORT)


def _by_precision(nodes: list[fx.Node]) -> dict[str, int]:
    counts = dict.fromkeys(_COLUMNS, 0)
    for node in nodes:
        if node.op != "call_function" or op_name(node) == "getitem" or is_view(node):
            continue
        if _is_cast(node):
            continue
        values = node.meta.get("val")
        values = list(values) if isinstance(values, list | tuple) else [values]
        values += [item.meta.get("val") for item in node.all_input_nodes]
        kinds = [
            _SHORT[v.dtype] for v in values if isinstance(v, torch.Tensor) and v.dtype in _SHORT
        ]
        counts[kinds[0] if kinds else "other"] += 1
    return counts


def _memory(transformed: Transformed) -> dict[str, int]:
    if transformed.step is None:
        top = peak(transformed.forward.module.graph).bytes
        return {"state": 0, "saved": 0, "peak": top}
    state = state_bytes(transformed.step)
    graph = transformed.step.gradient.graph
    return {"state": state, "saved": saved_bytes(graph), "peak": state + peak(graph).bytes}


def print_summary(summary: Summary, title: str, console: Console) -> None:
    """Print the summary for a person."""
    columns = [c for c in _COLUMNS if any(row[c] for row in summary.ops.values())]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("ops by precision")
    for column in columns:
        table.add_column(column, justify="right")
    for stage, row in summary.ops.items():
        table.add_row(stage, *[str(row[column]) for column in columns])
    console.print(table)
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "casts",
        f"{summary.casts_planned} planned, {summary.casts_cleaned} shared or cancelled, "
        f"{summary.casts_hoisted} moved out of the step; {summary.casts} remain, "
        f"{bytes_text(summary.cast_bytes)} if none is fused",
    )
    if summary.weights:
        facts.add_row(
            "weights",
            f"{summary.weights} masters in FP32 ({summary.parameters:,} numbers), "
            f"{summary.working_copies} with a 16-bit working copy",
        )
    if summary.first_scale is not None:
        facts.add_row("loss scale", f"begins at {summary.first_scale:g}")
    before, after = summary.memory["fp32"], summary.memory["mixed"]
    for key, what in (("peak", "peak memory"), ("saved", "saved for backward"), ("state", "state")):
        if before[key]:
            facts.add_row(
                f"{what}, estimated",
                f"{bytes_text(before[key])} in FP32, {bytes_text(after[key])} now "
                f"({after[key] / before[key]:.0%})",
            )
    if summary.passes:
        counts = ", ".join(f"{name} x{count}" for name, count in summary.passes.items())
        facts.add_row("passes for the Tensor Core", counts)
    if summary.unknown:
        kinds = ", ".join(f"{name} x{count}" for name, count in summary.unknown.items())
        facts.add_row("unknown ops", f"{kinds}: left in FP32")
    console.print(facts)
    for sentence in summary.unfit:
        console.print(f"does not fit FP16: {printable(sentence)}", markup=False, soft_wrap=True)


_SHOWN = 10


def print_ranges(ranges: Ranges, console: Console) -> None:
    """Print the tensors nearest to overflow, and the gradients that lose most numbers."""
    title = f"nearest to overflow in FP16, of {len(ranges.values)} tensors"
    table = numbers_table(title, "tensor", "largest", "bits of headroom", "not finite")
    by_size = sorted(ranges.values.items(), key=lambda item: -item[1].largest_finite)
    for name, held in by_size[:_SHOWN]:
        most = held.largest_finite
        room = f"{log2(Precision.FP16.largest / most):.1f}" if most else "-"
        table.add_row(printable(name), f"{most:.4g}", room, f"{held.nonfinite:,}")
    console.print(table)
    _print_narrowings(ranges, console)
    if not ranges.gradients:
        return
    scale = LossScale().initial
    title = (
        f"gradients with the largest losses in FP16: unscaled, and times a loss scale of {scale:g}"
    )
    columns = ("gradient of", "largest", "below 2^-14", "below 2^-24", "scaled, below 2^-24")
    table = numbers_table(title, *columns)
    lost = {name: held.share_lost(scale) for name, held in ranges.gradients.items()}
    by_loss = sorted(
        ranges.gradients.items(), key=lambda item: (-lost[item[0]], -item[1].share_below_smallest)
    )
    for name, held in by_loss[:_SHOWN]:
        shares = (held.share_below_normal, held.share_below_smallest, lost[name])
        texts = (f"{share:.1%}" for share in shares)
        table.add_row(printable(name), f"{held.largest:.4g}", *texts)
    console.print(table)


def _print_narrowings(ranges: Ranges, console: Console) -> None:
    """Print the tensors whose rounding to FP16 hurts a sensitive op most."""
    found = {
        name: formats[Precision.FP16.short]
        for name, formats in ranges.narrowings.items()
        if Precision.FP16.short in formats
    }
    if not found:
        return
    title = f"what rounding one tensor to FP16 does to what reads it, of {len(found)} tensors"
    table = numbers_table(title, "tensor", "read by", "error of the result", "of the gradient")
    for name, held in sorted(found.items(), key=lambda item: -item[1].worst)[:_SHOWN]:
        table.add_row(
            printable(name), printable(held.reader), f"{held.error:.1e}", f"{held.gradient:.1e}"
        )
    console.print(table)


def numbers_table(title: str, first: str, *numbers: str) -> Table:
    """Return an empty table with one column of names and one for each kind of number."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def bytes_text(count: float) -> str:
    """Return a number of bytes as text: ``3.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
