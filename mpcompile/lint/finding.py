"""What a rule finds: what, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mpcompile.plan.dataflow import Where


class Severity(Enum):
    """How bad a finding is; the value is its name in every format but GitHub's."""

    ERROR = "error"
    """The program computes something else than was meant."""
    WARNING = "warning"
    """It may, or it is much slower than it need be."""
    NOTE = "note"
    """mpcompile copes with it, at a price that the message names."""

    @property
    def fails(self) -> bool:
        """Whether a check with such a finding fails."""
        return self is not Severity.NOTE


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        rule: the rule's id, such as ``MP101``.
        severity: how bad it is here.
        message: what is wrong, without a full stop. It holds nothing that changes with the code
            around it: no line, no name of a node, no share of the whole.
        fix: what to do about it, as an imperative.
        node: the node's id in its graph.
        op: the node's op.
        where: its place in the user's program.
        detail: more about it that may change with the code around it, or "".
    """

    rule: str
    severity: Severity
    message: str
    fix: str
    node: str
    op: str
    where: Where
    detail: str = ""

    @property
    def text(self) -> str:
        """Message and detail."""
        return f"{self.message} ({self.detail})" if self.detail else self.message

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What stays when lines move: rule, module, op and message."""
        return self.rule, self.where.module, self.op, self.message
