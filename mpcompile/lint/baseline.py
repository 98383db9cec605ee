"""A file of known findings next to the code, so that a check fails only for new ones.

Findings match by rule, module, op and message. A finding whose line moves or whose node is
renumbered is not new. A second finding that equals a known one is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from mpcompile.lint.finding import Finding
from mpcompile.validation import read_document, read_json

_AGAIN = "write it again with --write-baseline"
_STRICT = ConfigDict(extra="forbid", strict=True)


@checked_dataclass(frozen=True, config=_STRICT)
class Known:
    """One kind of known finding.

    Attributes:
        rule: id of the rule.
        module: path of the module.
        op: the op.
        message: the message.
        count: how many such findings there are.
    """

    rule: str
    module: str
    op: str
    message: str
    count: Annotated[int, Field(ge=1)]


@checked_dataclass(frozen=True, config=_STRICT)
class Baseline:
    """A file of known findings.

    Attributes:
        version: the version of the format.
        findings: sorted, so that changes of the file are easy to read.
    """

    version: Literal[1]
    findings: tuple[Known, ...]

    def to_json(self) -> str:
        """Return the baseline as JSON, one value a line, with a line end after the last."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """Findings compared with a baseline.

    Attributes:
        new: the findings that are not in the baseline.
        known: how many findings are in the baseline.
        gone: how many findings of the baseline were not found again.
        compared: whether there was a baseline at all.
    """

    new: tuple[Finding, ...]
    known: int = 0
    gone: int = 0
    compared: bool = False

    @property
    def fails(self) -> bool:
        """Whether there is a new error or warning."""
        return any(finding.severity.fails for finding in self.new)


def baseline_of(findings: Sequence[Finding]) -> Baseline:
    """Return a baseline in which all these findings are known."""
    counts = Counter(finding.identity for finding in findings)
    return Baseline(1, tuple(Known(*identity, counts[identity]) for identity in sorted(counts)))


def read_baseline(path: Path) -> Baseline:
    """Read an untrusted baseline file; raise BadInput if it holds no baseline."""
    text = read_document(path, "baseline", "write one with --write-baseline")
    return read_json(Baseline, text, "this is not a baseline", str(path), _AGAIN)


def compare_with_baseline(findings: Sequence[Finding], baseline: Baseline) -> BaselineComparison:
    """Return which findings are new; of several equal ones, the first are the known ones."""
    left: Counter[tuple[str, str, str, str]] = Counter()
    for item in baseline.findings:
        left[item.rule, item.module, item.op, item.message] += item.count
    new = []
    for finding in findings:
        if left[finding.identity]:
            left[finding.identity] -= 1
        else:
            new.append(finding)
    return BaselineComparison(tuple(new), len(findings) - len(new), left.total(), compared=True)
