"""MP203 to MP207: numbers that a sensitive op reads, rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import MOVES, Check, Node, Program, title
from mpcompile.plan.op_table import rows_of
from mpcompile.plan.rule import PrecisionClass, Sensitivity
from mpcompile.precision import Precision

_TENSOR_CORE = rows_of(PrecisionClass.TENSOR_CORE)
_OF_IDS = (Sensitivity.COMPARISON, Sensitivity.DISCONTINUOUS)
_UNKNOWN = 2.0**31
"""No limit but that of a dtype."""
_KEEP_LAYERS = (Sensitivity.PERIODIC, Sensitivity.ILL_CONDITIONED)
_CALLS = {
    Sensitivity.PERIODIC: "an angle",
    Sensitivity.CANCELLING: "a number of a difference",
    Sensitivity.ADDING: "a number of a difference",
    Sensitivity.COMPARISON: "a number of a comparison",
    Sensitivity.DISCONTINUOUS: "the argument of a choice",
    Sensitivity.ILL_CONDITIONED: "a matrix of a solver",
}


def _check(rule: str, kinds: frozenset[Sensitivity]) -> Check:
    def check(program: Program) -> Iterator[Finding]:
        for node in program.nodes:
            if node.reader is None or node.reader[1] not in kinds or node.row in MOVES:
                continue
            if _ids_in(node, program) is not None:
                continue  # MP207 says more
            if node.stores_narrow:
                yield _rounded(rule, node)
            elif node.row in _TENSOR_CORE and node.reader[1] in _KEEP_LAYERS:
                yield _kept(rule, node)

    return check


def rounded_ids(program: Program) -> Iterator[Finding]:
    """Find integers above the digits of a 16-bit format that become an index or are compared."""
    for node in program.nodes:
        size = _ids_in(node, program)
        if size is None or node.reader is None:
            continue
        most = f"integers up to {size:,.0f}" if size < _UNKNOWN else "integers of unknown size"
        name, digits = title(program.precision), 2**program.precision.digits
        yield node.finding(
            "MP207",
            Severity.WARNING,
            f"{node.op} stores {most} in {name} {node.by.value}, and {node.reader[0]} reads them: "
            f"{name} has no odd number above {digits:,}",
            "remove that override, or index and compare with integers",
        )


def _ids_in(node: Node, program: Program) -> float | None:
    """Return the largest of the integers that a node stores in too few digits, or None."""
    if node.reader is None or not node.stores_narrow or node.reader[1] not in _OF_IDS:
        return None
    reader, known = program.by_id.get(node.reader[0]), node.known
    if not known.integer and reader is not None and reader.row == "cast":
        known = reader.known  # the index that it becomes
    return known.size if known.integer and known.size > 2**program.precision.digits else None


def _rounded(rule: str, node: Node) -> Finding:
    reader, kind = node.reader  # type: ignore[misc]
    name = title(node.stores or Precision.FP32)
    by = "" if reader == node.id else f", and {reader} reads it"
    return node.finding(
        rule,
        Severity.WARNING,
        f"{node.op} stores {_CALLS[kind]} in {name} {node.by.value}{by}: {kind.value}",
        "remove that override, or use the level paper",
    )


def _kept(rule: str, node: Node) -> Finding:
    reader, kind = node.reader  # type: ignore[misc]
    return node.finding(
        rule,
        Severity.NOTE,
        f"{node.op} makes {_CALLS[kind]} for {reader} and stays in FP32, without Tensor Cores: "
        f"{kind.value}",
        f"if its numbers are small, give --half 'node:{node.id}'",
    )


rounded_angles = _check("MP203", frozenset({Sensitivity.PERIODIC}))
rounded_differences = _check("MP204", frozenset({Sensitivity.CANCELLING, Sensitivity.ADDING}))
rounded_choices = _check("MP205", frozenset({Sensitivity.COMPARISON, Sensitivity.DISCONTINUOUS}))
rounded_matrices = _check("MP206", frozenset({Sensitivity.ILL_CONDITIONED}))
