"""Calibration names the nodes that overflow later; the long campaign is the bench."""

from __future__ import annotations

from bench.numerics import overflow_recall


def test_what_overflows_in_a_later_run_was_named_before() -> None:
    found = [item for seed in range(2) for item in overflow_recall.outcomes(seed)]
    overflowed = [item for item in found if item.overflowed]
    assert len(overflowed) >= 8
    assert [item for item in overflowed if not item.named] == []
    assert len(overflowed) < len(found), "the nodes are no test if all of them overflow"
