"""MP201 and MP202: the logarithm of a probability that was rounded first."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import MOVES, Node, Program, moves, title
from mpcompile.precision import Precision

_SIGMOIDS = frozenset(("sigmoid", "special_expit", "Sigmoid"))
_LOGARITHMS = frozenset("log log2 log10 log1p special_log1p Log".split())
_ONE_MINUS = frozenset(("rsub", "sub", "add", "neg", "Sub", "Add", "Neg"))
_BOUNDS = frozenset("clamp clip clamp_min clamp_max maximum minimum Clip Max Min".split())
_ADDS_NUMBER = frozenset(("add", "sub", "rsub", "Add", "Sub"))

# Above the first, sigmoid(x) rounds to 1: half a step below 1 is 2^-12 in FP16, 2^-9 in BF16, 2^-25
# in FP32. Beyond the second, exp(-x) rounds to 0: below 2^-25, 2^-134, 2^-150.
_ROUNDS = {Precision.FP16: (8.3, 17.3), Precision.BF16: (6.2, 92.9), Precision.FP32: (17.3, 104.0)}


def sigmoid_then_loss(program: Program) -> Iterator[Finding]:
    """MP201: a sigmoid whose result goes into a binary cross entropy."""
    for node in program.nodes:
        if node.op != "binary_cross_entropy":
            continue
        for source in program.origins(program.maker(node), _hands_on):
            if source.op in _SIGMOIDS:
                yield source.finding(
                    "MP201",
                    _severity(source),
                    f"binary_cross_entropy reads a sigmoid that is {_stored(source)}: "
                    f"{_one(source)}, where the gradient of a wrong answer is {_gradient(source)}",
                    "leave out the sigmoid and use binary_cross_entropy_with_logits",
                )


def logarithm_of_probability(program: Program) -> Iterator[Finding]:
    """MP202: the logarithm of a softmax or a sigmoid.

    ``log(p + epsilon)`` of a softmax is intended and finite. After a sigmoid, the distance of p
    from 1 is lost with or without an epsilon.
    """
    found: set[str] = set()
    for node in program.nodes:
        if node.op not in _LOGARITHMS:
            continue
        argument = program.maker(node)
        plain = [item for item in program.origins(argument, moves) if item.row == "softmax"]
        shifted = program.origins(argument, lambda item: _keeps(program, item))
        for source in (*plain, *(item for item in shifted if item.op in _SIGMOIDS)):
            if source.id in found:
                continue
            found.add(source.id)
            one, zero = _ROUNDS[source.stores or Precision.FP32]
            sigmoid = source.op in _SIGMOIDS
            range_ = (
                f"it is 1 for logits above {one:g} and 0 below {-zero:g}"
                if sigmoid
                else f"it is 0 for logits {zero:g} below the largest"
            )
            yield source.finding(
                "MP202",
                _severity(source),
                f"{node.op} reads a {source.op.lower().strip('_')} that is {_stored(source)}: "
                f"{range_}, and the logarithm of 0 is -inf",
                "use logsigmoid, or binary_cross_entropy_with_logits"
                if sigmoid
                else "use log_softmax, or cross_entropy on the logits",
            )


def _severity(source: Node) -> Severity:
    return Severity.WARNING if source.stores_narrow else Severity.NOTE


def _stored(source: Node) -> str:
    return f"stored in {title(source.stores or Precision.FP32)}"


def _one(source: Node) -> str:
    return f"it is 1 for logits above {_ROUNDS[source.stores or Precision.FP32][0]:g}"


def _gradient(source: Node) -> str:
    """Return ``1e12 * 0``, which is PyTorch's gradient at 1; FP16 has no 1e12."""
    return "NaN" if source.stores is Precision.FP16 else "0"


def _hands_on(node: Node) -> bool:
    return node.row in MOVES or node.op in _BOUNDS


def _keeps(program: Program, node: Node) -> bool:
    """Whether a node's result is near 0 or 1 exactly where the probability is."""
    if _hands_on(node) or node.op in _ONE_MINUS - _ADDS_NUMBER:
        return True
    operands = [program.by_id[name] for name in node.reads if name in program.by_id]
    plain = [item for item in operands if item.op not in ("constant", "buffer")]
    return node.op in _ADDS_NUMBER and len(plain) == 1
