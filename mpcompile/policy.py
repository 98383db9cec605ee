"""Which op may run in which precision, and who said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mpcompile.errors import BadInput
from mpcompile.precision import Precision
from mpcompile.rules import UNKNOWN, Rule, Wish


@dataclass(frozen=True, slots=True)
class Policy:
    """The op table of `mpcompile.rules` plus what the user wants otherwise.

    Attributes:
        precision: the 16-bit format; `Precision.FP32` changes nothing at all.
        full: patterns that stay in FP32.
        half: patterns that run in the 16-bit format, against the table.
        free: patterns that take either.

    A pattern is matched, with ``*`` and ``?`` as wildcards, against the op's row name
    (``softmax``), its op name (``gelu``), its module path (``encoder.layers.*.attn``, which also
    covers all modules below it) and its node name (``linear_3``). ``full`` beats ``half`` beats
    ``free``: of two wishes for one op the more careful one holds.

    Raises:
        BadInput: the format is not one of the three.
    """

    precision: Precision = Precision.FP16
    full: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.precision, Precision):
            raise BadInput(
                f"{self.precision!r} is not a precision",
                "Policy",
                "use Precision.FP16, BF16 or FP32",
            )

    @property
    def changes_nothing(self) -> bool:
        """Whether every op stays in FP32."""
        return self.precision is Precision.FP32

    def wish(
        self, rules: Mapping[str, Rule], op: str, module: str, node: str
    ) -> tuple[Rule, Wish, str]:
        """Return the op's row, what it shall be, and why.

        Args:
            rules: `TORCH_RULES` or `ONNX_RULES`.
            op: the op's name as that table spells it.
            module: dotted path of the module that called it, or ``""``.
            node: the node's name in its graph.
        """
        rule = rules.get(op, UNKNOWN)
        for wish, patterns in (
            (Wish.FULL, self.full),
            (Wish.HALF, self.half),
            (Wish.FREE, self.free),
        ):
            for pattern in patterns:
                if any(fnmatchcase(name, pattern) for name in (rule.name, op, node, module)) or (
                    fnmatchcase(module, f"{pattern}.*")
                ):
                    return rule, wish, f"the policy's {wish.value}={pattern!r}"
        return rule, rule.wish, rule.why


FULL_PRECISION = Policy(precision=Precision.FP32)
"""The policy that leaves the program as it is."""
