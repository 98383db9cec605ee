"""A rule's result: what is wrong, where it is, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mpcompile.plan.dataflow import Where


class Severity(Enum):
    """How bad a finding is; the value is its name in every format except GitHub's."""

    ERROR = "error"
    """The program computes wrong numbers."""
    WARNING = "warning"
    """The program may compute wrong numbers, or is much slower than it needs to be."""
    NOTE = "note"
    """mpcompile handles it, at a cost that the message names."""

    @property
    def fails(self) -> bool:
        """Whether a finding of this severity makes a check fail."""
        return self is not Severity.NOTE


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        rule: the rule's id, such as ``MP101``.
        severity: how bad it is here.
        message: what is wrong, without a full stop. It must not depend on the code around it: it
            contains no line, no node name, no share of the whole.
        fix: how to fix it, as an imperative.
        node: the node's id in its graph.
        op: the node's op.
        where: the source position in the user's program.
        detail: more facts, which may depend on the code around it, or "".
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
        """The message with its detail."""
        return f"{self.message} ({self.detail})" if self.detail else self.message

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """The parts that stay the same when lines move: rule, module, op and message."""
        return self.rule, self.where.module, self.op, self.message
