"""Which op may run in which precision, and why: a level, and overrides of it.

The more specific one wins. An override that names a node beats one that names a module path, which
beats an op name, a row of the op table, ``*``, and the level, in that order. Of two overrides of
one kind an exact name beats wildcards, and of two wildcards (or two module paths) the one with more
literal characters wins. Overrides that still tie must agree, or they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum, IntEnum
from fnmatch import fnmatchcase

from mpcompile.errors import BadInput, did_you_mean, warn
from mpcompile.plan.authors import Author
from mpcompile.plan.op_table import UNKNOWN
from mpcompile.plan.rule import PrecisionClass, Rule, Wish
from mpcompile.precision import Precision

_WILDCARD = re.compile(r"\[[^]]*]|[*?]")


class Level(Enum):
    """How much is stored in 16 bits; the value is its name in flags and settings."""

    CAREFUL = "careful"
    """Residual streams and the results of norms, softmax and means are stored in FP32."""
    PAPER = "paper"
    """16-bit storage wherever the paper says it is safe: the op table as it stands."""
    TENSOR_CORES_ONLY = "tensor-cores-only"
    """Only ops of the Tensor Core change, with casts right round them."""
    FP32 = "fp32"
    """Nothing changes."""


class OverrideKind(IntEnum):
    """The part of an op that an override matched, least specific first."""

    EVERYTHING = 0
    ROW = 1
    OP = 2
    MODULE = 3
    NODE = 4


_PREFIXES = {
    kind.name.lower(): kind for kind in OverrideKind if kind is not OverrideKind.EVERYTHING
}
# A name without a prefix that fits several parts means the widest part: the first gelu of a graph
# is also the node "gelu", but "gelu" means all of them.
_TRIED = (OverrideKind.MODULE, OverrideKind.OP, OverrideKind.ROW, OverrideKind.NODE)


class UnmatchedOverride(UserWarning):
    """An override matches no op of the graph."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A level, and what the user wants otherwise.

    Attributes:
        level: what holds where no override does.
        precision: the 16-bit format; `Precision.FP32` is the same as `Level.FP32`.
        full: patterns that stay in FP32.
        half: patterns that run in the 16-bit format, against the level.
        free: patterns that take either.

    A pattern is matched, with ``*`` and ``?`` as wildcards, against the op's module path
    (``encoder.layers.*.attn``, which also covers all modules below it), its op name (``gelu``), its
    row of the op table (``softmax``) and its node name (``linear_3``). ``module:``, ``op:``,
    ``row:`` or ``node:`` before it says which one is meant. The more specific pattern wins,
    whatever its list (the module's text says what is more specific). `Level.FP32` changes nothing,
    whatever the patterns say.

    Raises:
        BadInput: not a level, not a precision, or not patterns.
    """

    level: Level = Level.PAPER
    precision: Precision = Precision.FP16
    full: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for value, kind, name in (
            (self.level, Level, "level"),
            (self.precision, Precision, "precision"),
        ):
            if not isinstance(value, kind):
                names = ", ".join(member.name for member in kind)
                raise BadInput(
                    f"{value!r} is not a {name}",
                    "Policy",
                    f"use {kind.__name__}.X, where X is one of {names}",
                )
        if Level.FP32 is self.level or Precision.FP32 is self.precision:
            # Both ways to ask for FP32 give one policy.
            object.__setattr__(self, "level", Level.FP32)
            object.__setattr__(self, "precision", Precision.FP32)
        for name in ("full", "half", "free"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))

    def inside(self, prefix: str) -> Policy:
        """Return the policy of one of several graphs, whose nodes are named with a prefix here."""

        def own(patterns: tuple[str, ...]) -> tuple[str, ...]:
            head = f"node:{prefix}"
            return tuple(
                f"node:{pattern.removeprefix(head)}" if pattern.startswith(head) else pattern
                for pattern in patterns
            )

        return replace(self, full=own(self.full), half=own(self.half), free=own(self.free))

    @property
    def changes_nothing(self) -> bool:
        """Whether every op stays in FP32."""
        return self.level is Level.FP32

    @property
    def overrides(self) -> tuple[tuple[Wish, str], ...]:
        """Every override as wish and pattern."""
        lists = ((Wish.FULL, self.full), (Wish.HALF, self.half), (Wish.FREE, self.free))
        return tuple((wish, pattern) for wish, patterns in lists for pattern in patterns)


def _patterns(name: str, patterns: object) -> tuple[str, ...]:
    if not isinstance(patterns, list | tuple):
        raise BadInput(f"{name} is {patterns!r}", "Policy", f"write {name}=({patterns!r},)")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.rpartition(":")[2]:
            raise BadInput(
                f"{name} holds {pattern!r}", "Policy", "give the name of an op, a node or a module"
            )
        prefix, colon, _ = pattern.rpartition(":")
        if colon and prefix not in _PREFIXES:
            raise BadInput(
                f"{name} holds {pattern!r}, and {prefix!r} is not a kind of name"
                + did_you_mean(prefix, _PREFIXES),
                "Policy",
                f"write one of {', '.join(_PREFIXES)} before the colon",
            )
    return tuple(patterns)


FULL_PRECISION = Policy(level=Level.FP32)
"""The policy that leaves the program as it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """The facts about one op that a policy uses.

    Attributes:
        node: the node's name in its graph.
        op: the op's name as in the op table.
        module: dotted path of the module that called it, or ``""``.
        residual: it adds two activations of one size.
    """

    node: str
    op: str
    module: str = ""
    residual: bool = False


@dataclass(frozen=True, slots=True)
class Resolution:
    """The wishes of a policy for every op of a graph.

    Attributes:
        wishes: per node its row of the op table, its wish, and the reason.
        overridden: the nodes that an override names.
        unmatched: a sentence per override that matches no op.
    """

    wishes: dict[str, tuple[Rule, Wish, str]]
    overridden: frozenset[str]
    unmatched: tuple[str, ...]

    def warn(self) -> None:
        """Issue an `UnmatchedOverride` for each override that matches no op."""
        for sentence in self.unmatched:
            warn(sentence, UnmatchedOverride)


def resolve(policy: Policy, rules: Mapping[str, Rule], rows: Iterable[Row]) -> Resolution:
    """Return the wish of each op, and the overrides that match no op.

    Args:
        policy: a level and overrides.
        rules: `TORCH_RULES` or `ONNX_RULES`.
        rows: the ops of one graph.

    Raises:
        BadInput: two different overrides match one op, and neither is more specific.
    """
    rows = tuple(rows)
    if policy.changes_nothing:
        why = "the level fp32 keeps all ops in FP32"
        wishes = {row.node: (_rule(rules, row), Wish.FULL, why) for row in rows}
        return Resolution(wishes, frozenset(), ())
    matched: set[str] = set()
    overridden: set[str] = set()
    wishes = {}
    for row in rows:
        rule = _rule(rules, row)
        found = [
            (specificity, wish, pattern)
            for wish, pattern in policy.overrides
            if (specificity := _match(pattern, row, rule.name)) is not None
        ]
        matched.update(pattern for _, _, pattern in found)
        overridden |= {row.node} if found else set()
        wishes[row.node] = (rule, *(_strongest(found, row) or _by_level(policy.level, rule, row)))
    unmatched = [override for override in policy.overrides if override[1] not in matched]
    return Resolution(
        wishes,
        frozenset(overridden),
        tuple(_unmatched(*override, rules, rows) for override in unmatched),
    )


def names_node(pattern: str, row: Row, rule: str) -> bool:
    """Whether a pattern is exactly the name of an op's node, so that none is more specific.

    Args:
        pattern: the pattern of an override.
        row: the op.
        rule: its row of the op table.
    """
    found = _match(pattern, row, rule)
    return found is not None and found[:2] == (OverrideKind.NODE, True)


def _rule(rules: Mapping[str, Rule], row: Row) -> Rule:
    return rules.get(row.op, UNKNOWN)


_Specificity = tuple[OverrideKind, bool, int]


def _match(pattern: str, row: Row, rule: str) -> _Specificity | None:
    """Return how specifically a pattern names an op, or None if it does not."""
    prefix, _, text = pattern.rpartition(":")
    literals = len(_WILDCARD.sub("", text))
    names = {
        OverrideKind.MODULE: row.module,
        OverrideKind.OP: row.op,
        OverrideKind.ROW: rule,
        OverrideKind.NODE: row.node,
    }
    for kind in (_PREFIXES[prefix],) if prefix else _TRIED:
        below = kind is OverrideKind.MODULE and fnmatchcase(names[kind], f"{text}.*")
        if below or fnmatchcase(names[kind], text):
            everything = not literals and not prefix
            return OverrideKind.EVERYTHING if everything else kind, names[kind] == text, literals
    return None


def _strongest(found: list[tuple[_Specificity, Wish, str]], row: Row) -> tuple[Wish, str] | None:
    """Return wish and reason of the most specific override; refuse two that contradict."""
    if not found:
        return None
    top = max(specificity for specificity, _, _ in found)
    (_, wish, pattern), *others = (match for match in found if match[0] == top)
    for _, other, again in others:
        if other is not wish:
            raise BadInput(
                f"{wish.value}={pattern!r} and {other.value}={again!r} both name {row.node}"
                + (f" in {row.module}" if row.module else "")
                + ", and neither is more specific",
                "the policy",
                "remove one, or name the node, the op or more of the module path",
            )
    return wish, f"{Author.OVERRIDE} {wish.value}={pattern!r}"


def _by_level(level: Level, rule: Rule, row: Row) -> tuple[Wish, str]:
    if level is Level.CAREFUL and rule.wish is Wish.FREE:
        if rule.inside:
            return Wish.FULL, f"careful: {rule.name} is computed and stored in FP32"
        if row.residual:
            return Wish.FULL, "careful: a residual stream is stored in FP32"
    moves = rule.precision_class is PrecisionClass.TRANSPARENT
    if level is Level.TENSOR_CORES_ONLY and rule.wish is Wish.FREE and not moves:
        return Wish.FULL, "tensor-cores-only: no Tensor Core runs it"
    return rule.wish, rule.why


def _unmatched(wish: Wish, pattern: str, rules: Mapping[str, Rule], rows: tuple[Row, ...]) -> str:
    names = {name for row in rows for name in (row.node, row.op, _rule(rules, row).name)}
    for row in rows:
        parts = row.module.split(".")
        names.update(".".join(parts[: end + 1]) for end in range(len(parts)))
    near = get_close_matches(pattern.rpartition(":")[2], sorted(names - {""}))
    nearest = f"; the nearest names are {', '.join(near)}" if near else ""
    return f"{wish.value}={pattern!r} matches no op{nearest}"
