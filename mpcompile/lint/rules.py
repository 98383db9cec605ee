"""The rules: ids, names, worst severities, and the page that explains each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcompile.lint.constants import (
    bounds_that_become_one,
    overflowing_constants,
    overflowing_masks,
    vanishing_constants,
)
from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.gradient_sums import gradient_sums
from mpcompile.lint.layout import convolutions_not_channels_last
from mpcompile.lint.loss_terms import narrow_losses
from mpcompile.lint.probabilities import logarithm_of_probability, sigmoid_then_loss
from mpcompile.lint.program import Check, Program
from mpcompile.lint.rounded import (
    rounded_angles,
    rounded_choices,
    rounded_differences,
    rounded_ids,
    rounded_matrices,
)
from mpcompile.lint.selection import RuleSelection
from mpcompile.lint.shapes import misaligned_shapes
from mpcompile.lint.sums import long_products, long_sums

PAGES = Path(__file__).parent / "pages"
"""The pages of ``docs/lint``."""


@dataclass(frozen=True, slots=True)
class LintRule:
    """One rule.

    Attributes:
        id: its name in selections, baselines and pages; never given to another rule.
        name: for people.
        severity: the worst severity of its findings.
        line: what it finds, in one line without a full stop.
        check: the function that finds it.
    """

    id: str
    name: str
    severity: Severity
    line: str
    check: Check

    @property
    def page(self) -> str:
        """The path of its page, from the root of the project."""
        return f"docs/lint/{self.id}.md"

    def text(self) -> str:
        """Return the text of its page."""
        return (PAGES / f"{self.id}.md").read_text(encoding="utf-8")


_ERROR, _WARNING, _NOTE = Severity

# fmt: off
RULES: tuple[LintRule, ...] = (
    LintRule("MP101", "overflowing-constant", _ERROR,
        "a constant beyond 65504", overflowing_constants),
    LintRule("MP102", "vanishing-constant", _ERROR,
        "a constant or epsilon that FP16 rounds to zero", vanishing_constants),
    LintRule("MP103", "overflowing-mask", _WARNING,
        "a mask such as -1e9 before a softmax", overflowing_masks),
    LintRule("MP104", "bound-becomes-one", _WARNING,
        "an upper bound such as 1 - 1e-6 that 16 bits round to 1", bounds_that_become_one),
    LintRule("MP201", "sigmoid-then-loss", _WARNING,
        "a sigmoid followed by binary cross entropy", sigmoid_then_loss),
    LintRule("MP202", "logarithm-of-probability", _WARNING,
        "the logarithm of a softmax or a sigmoid", logarithm_of_probability),
    LintRule("MP203", "rounded-angle", _WARNING,
        "an angle of a sine in 16 bits", rounded_angles),
    LintRule("MP204", "rounded-difference", _WARNING,
        "numbers in 16 bits whose difference is read", rounded_differences),
    LintRule("MP205", "rounded-choice", _WARNING,
        "the argument of a step, a choice or a comparison in 16 bits", rounded_choices),
    LintRule("MP206", "rounded-matrix", _WARNING,
        "the matrix of a solver in 16 bits", rounded_matrices),
    LintRule("MP207", "rounded-id", _WARNING,
        "integers above 2,048 in 16 bits that become an index or are compared", rounded_ids),
    LintRule("MP301", "long-sum", _WARNING,
        "a sum, norm or mean of many numbers in 16 bits", long_sums),
    LintRule("MP302", "long-product", _WARNING,
        "a long matmul of two activations with a 16-bit result", long_products),
    LintRule("MP303", "gradient-sum", _NOTE,
        "a gradient of many terms, which autocast adds in 16 bits", gradient_sums),
    LintRule("MP401", "misaligned-shape", _WARNING,
        "a Tensor-Core op with rows that are no multiple of eight numbers", misaligned_shapes),
    LintRule("MP501", "not-channels-last", _NOTE,
        "convolutions whose input is not channels-last", convolutions_not_channels_last),
    LintRule("MP601", "narrow-loss", _WARNING,
        "a part of the loss that computes in 16 bits", narrow_losses),
)
# fmt: on


def lint(program: Program, selection: RuleSelection | None = None) -> tuple[Finding, ...]:
    """Return all findings, in the order of the program's nodes, then of the rules.

    Args:
        program: the program to check.
        selection: which findings are wanted; default: all.
    """
    wanted = selection or RuleSelection()
    order = {node.id: position for position, node in enumerate(program.nodes)}
    found = [
        finding
        for rule in RULES
        if wanted.selects(rule.id)
        for finding in rule.check(program)
        if wanted.keeps(finding)
    ]
    return tuple(sorted(found, key=lambda finding: order[finding.node]))
