"""MP303: gradients that are sums of many terms, which autocast adds in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import Node, Program, title
from mpcompile.lint.sums import LONGEST
from mpcompile.plan.op_table import rows_of
from mpcompile.plan.rule import PrecisionClass
from mpcompile.precision import Precision

USES = 64
"""Layers that read one weight from which on its gradient loses more than three roundings."""

_LAYERS = rows_of(PrecisionClass.TENSOR_CORE)
_READS_OFTEN = frozenset(
    "index take embedding embedding_bag adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d unfold im2col "
    "as_strided grid_sampler grid_sampler_2d grid_sampler_3d replication_pad1d replication_pad2d "
    "replication_pad3d".split()
)
"""Ops whose backward adds in place; see `mpcompile.passes.gradient.accumulate_in_full`."""
_SOFTMAX = frozenset(("softmax", "log_softmax", "_softmax", "_log_softmax", "logsumexp"))


def gradient_sums(program: Program) -> Iterator[Finding]:
    """MP303: a sum of many gradients, or of exponentials, that autocast adds in 16 bits."""
    precision = program.precision
    if program.kind != "torch" or precision is Precision.FP32:
        return
    used = _used(program, precision)
    for node in program.nodes:
        said = (
            used.get(node.id)
            or _reads(program, node, precision)
            or _norm(program, node, precision)
            or _exponentials(node, precision)
        )
        if said:
            what, fix = said
            yield node.finding("MP303", Severity.NOTE, f"{what}; here the sum is FP32", fix)


def _used(program: Program, precision: Precision) -> dict[str, tuple[str, str]]:
    """Say of weights that many layers read them; by the first of these."""
    order = {node.id: position for position, node in enumerate(program.nodes)}
    found: dict[str, tuple[str, str]] = {}
    for weight in program.nodes:
        if weight.op != "parameter":
            continue
        uses = [node for node in _readers(program, weight) if node.row in _LAYERS]
        if len(uses) >= USES:
            first, name = min(uses, key=lambda node: order[node.id]), title(precision)
            found.setdefault(
                first.id,
                (
                    f"{len(uses):,} layers read {weight.id}: autocast rounds the gradient of each "
                    f"to {name} and adds them in {name}",
                    "under autocast, call the layer once on all inputs",
                ),
            )
    return found


def _readers(program: Program, weight: Node) -> list[Node]:
    """Return what reads a weight, through casts and views."""
    found: dict[str, Node] = {}
    waiting = [weight]
    while waiting:
        for reader in program.readers.get(waiting.pop().id, ()):
            if reader.row in ("movement", "cast"):
                waiting.append(reader)
            else:
                found[reader.id] = reader
    return [*found.values()]


def _reads(program: Program, node: Node, precision: Precision) -> tuple[str, str] | None:
    """Say that an op reads the elements of a 16-bit tensor many times."""
    source = program.maker(node)
    if node.op not in _READS_OFTEN or source is None or not source.stores_narrow:
        return None
    held, read = prod(source.shape), prod(node.shape)
    if not held or read // held < LONGEST[precision] // 8:
        return None
    instead = ", or use index_select" if node.op in ("index", "take", "embedding") else ""
    return (
        f"{node.op} reads each element about {read // held:,} times: torch adds their gradients "
        f"in {title(precision)}, where a sum of ones stops at {LONGEST[precision]:,}",
        f"under autocast, run {node.op} with enabled=False on x.float(){instead}",
    )


def _norm(program: Program, node: Node, precision: Precision) -> tuple[str, str] | None:
    """Say that a layer norm has many rows."""
    source = program.maker(node)
    if node.op not in ("layer_norm", "native_layer_norm") or source is None or not node.shape:
        return None
    rows = prod(node.shape[:-1])
    if not source.stores_narrow or rows < LONGEST[precision]:
        return None
    return (
        f"{node.op} has {rows:,} rows: on a CPU torch adds the gradients of its weight and bias in "
        f"{title(precision)}, where a sum of ones stops at {LONGEST[precision]:,} a thread",
        "under autocast on a CPU, run it with enabled=False on x.float()",
    )


def _exponentials(node: Node, precision: Precision) -> tuple[str, str] | None:
    """Say that a softmax adds more equal numbers than FP16 can count."""
    if node.op not in _SOFTMAX or precision is not Precision.FP16 or not node.shape:
        return None
    count = node.length or node.shape[-1]
    if count <= precision.largest:
        return None
    return (
        f"{node.op} adds {count:,} exponentials: over the last dimension torch's CPU kernel adds "
        "them in FP16, so of equal logits it is infinite",
        "under autocast, give it x.float()",
    )
