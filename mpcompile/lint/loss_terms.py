"""MP601: parts of the loss outside FP32."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import By, Node, Program, title
from mpcompile.precision import Precision

_LOSSES = frozenset(("loss", "log_sigmoid"))
_COMPUTES_NOTHING = frozenset(
    "movement indexing choice comparison cast constant random integer dropout".split()
)
_ROUNDS_NOTHING = frozenset(
    "clamp clip clamp_min clamp_max maximum minimum fmax fmin abs absolute neg negative relu where "
    "masked_fill sign sgn Clip Max Min Abs Neg Relu Where Sign".split()
)
_TENSOR_CORE = frozenset(("matmul", "conv", "attention", "rnn"))


def narrow_losses(program: Program) -> Iterator[Finding]:
    """MP601: an op of the loss that computes in 16 bits."""
    for node in program.nodes:
        if not node.narrow or not (node.row in _LOSSES or _is_term(node)):
            continue
        name = title(node.computes or Precision.FP32)
        steps = 2048 if node.computes is Precision.FP16 else 256
        planned = node.by is By.PLAN
        yield node.finding(
            "MP601",
            Severity.NOTE if planned else Severity.WARNING,
            f"{node.op} is part of the loss and computes in {name} {node.by.value}, which resolves "
            f"a part in {steps:,} of a number",
            "use a loss function of PyTorch, which reads 16 bits and computes in FP32, or give "
            f"--full 'node:{node.id}'"
            if planned
            else "remove that override: a loss in FP32 costs almost nothing",
        )


def _is_term(node: Node) -> bool:
    computes = node.row not in _COMPUTES_NOTHING | _TENSOR_CORE and node.op not in _ROUNDS_NOTHING
    return node.in_loss and computes
