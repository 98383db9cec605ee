"""The comparison of a step's first batch with FP32, before a command says that all is well."""

from __future__ import annotations

from rich.console import Console

from mpcompile.commands.terminal import warnings_on_one_line
from mpcompile.errors import CheckFailed
from mpcompile.numerics.blame import blame
from mpcompile.numerics.first_batch import FirstBatch, compare
from mpcompile.numerics.remedies import Remedy
from mpcompile.program.proof.verify import Proof
from mpcompile.step.transformed import Transformed


def check_first_batch(
    source: str, transformed: Transformed, proof: Proof | None, console: Console
) -> FirstBatch | None:
    """Compare; return the comparison, or None if there is nothing to compare.

    Args:
        source: the name of the program.
        transformed: its step.
        proof: the first batch in FP32; None: the program was not run (``--no-verify``).
        console: shows what takes time.

    Raises:
        CheckFailed: a result is too far from FP32.
    """
    if proof is None:
        return None
    with console.status("comparing the first batch"), warnings_on_one_line():
        found = compare(transformed, proof)
    if found is None or not found.far:
        return found
    with console.status("trying overrides"), warnings_on_one_line():
        reason = blame(transformed, proof, found)
    raise CheckFailed(
        reason.what,
        reason.where,
        f"{advice(source, reason.remedy, reason.tried)}, or give --no-check to go on",
    )


def in_words(found: FirstBatch) -> str:
    """Return a sentence about a comparison that holds."""
    return (
        f"first batch beside FP32: the loss differs by {found.loss:.1g} of its size, no gradient "
        f"by more than {found.gradient:.1g}"
    )


def advice(source: str, remedy: Remedy | None, tried: bool) -> str:
    """Return in words what mends a step.

    Args:
        source: the name of the program.
        remedy: the override that was tried and helps, or None.
        tried: whether overrides could be tried.
    """
    if remedy is not None:
        return f"`{remedy.flags}` mends it"
    if not tried:
        return "change the given plan, whose decisions count before overrides"
    return f"no few ops in FP32 were found that mend it; `mpcompile tune {source}` finds a set"
