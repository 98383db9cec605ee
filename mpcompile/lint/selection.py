"""RuleSelection of rules by id or by the beginning of an id, as in ruff."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mpcompile.errors import BadInput, did_you_mean
from mpcompile.lint.finding import Finding

EVERYTHING = "ALL"


@dataclass(frozen=True, slots=True)
class RuleSelection:
    """The selection of findings.

    Attributes:
        select: ids or beginnings of ids (``MP1``), or ``ALL``.
        ignore: ids or beginnings of ids to leave out. If both match a rule, the longer one wins;
            at equal length this one wins.
        modules: for each pattern of module paths, as in `mpcompile.Policy`, the rules to leave out
            in these modules and in all modules below them.
    """

    select: tuple[str, ...] = (EVERYTHING,)
    ignore: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, known: Iterable[str], where: str) -> None:
        """Raise BadInput if a selector matches no rule.

        Args:
            known: the ids of the rules.
            where: the source of the selectors, for the message.
        """
        known = tuple(known)
        for selector in (
            *self.select,
            *self.ignore,
            *(i for v in self.modules.values() for i in v),
        ):
            if not any(_length(selector, rule) for rule in known):
                raise BadInput(
                    f"{selector!r} matches no rule of lint{did_you_mean(selector, known)}",
                    where,
                    "`mpcompile lint --rules` lists them",
                )

    def selects(self, rule: str) -> bool:
        """Whether findings of a rule are selected at all."""
        wanted = max((_length(item, rule) for item in self.select), default=0)
        unwanted = max((_length(item, rule) for item in self.ignore), default=0)
        return wanted > unwanted

    def keeps(self, finding: Finding) -> bool:
        """Whether a finding is selected in its module."""
        module = finding.where.module
        return not any(
            any(_length(item, finding.rule) for item in ignored)
            for pattern, ignored in self.modules.items()
            if fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
        )


def _length(selector: str, rule: str) -> int:
    """Return how many characters of a rule's id a selector matches; 0 if it does not match."""
    if selector == EVERYTHING:
        return 1
    return 1 + len(selector) if selector and rule.startswith(selector) else 0
