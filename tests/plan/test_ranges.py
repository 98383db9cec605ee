"""What a range counts, and its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.errors import BadInput
from mpcompile.numerics import calibration
from mpcompile.numerics.calibration import range_of
from mpcompile.plan.ranges import LOWEST, Range, Ranges, read_ranges

numbers = st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=30)
HELD = Range(3.0, 4, 1, 0, ((0, 2), (1, 1)))
RANGES = Ranges("abc", 2, {"x": HELD, "y": Range(0.0, 2, 1, 1, ())}, {"x": HELD}, 3, True)


def magnitudes(values: list[float]) -> np.ndarray:
    return np.abs(np.array(values, dtype=np.float32)).astype(np.float64)


@settings(max_examples=300, deadline=None)
@given(numbers)
def test_a_range_counts_what_numpy_counts(values: list[float]) -> None:
    held = range_of(torch.tensor(values))
    size = magnitudes(values)
    finite = size[np.isfinite(size)]
    assert held.count == len(values)
    assert held.zeros == (size == 0).sum()
    assert held.nonfinite == len(size) - len(finite)
    assert held.largest_finite == max(finite, default=0.0)
    assert held.largest == (math.inf if held.nonfinite else held.largest_finite)
    others = (size != 0).sum()
    for exponent in (-14, -24, -40, 3):
        share = (finite[finite > 0] < 2.0**exponent).sum() / others if others else 0
        assert held.share_below(exponent) == share
    assert held.share_below_normal == held.share_below(-14)
    assert held.share_lost(2.0**16) == held.share_below(-40)
    exponents = [max(math.frexp(v)[1] - 1, LOWEST) for v in finite if v > 0]
    assert held.exponents == tuple((e, exponents.count(e)) for e in sorted(set(exponents)))


@settings(max_examples=100, deadline=None)
@given(numbers, numbers)
def test_two_batches_measure_what_one_of_both_would(a: list[float], b: list[float]) -> None:
    both = range_of(torch.tensor(a)).joined(range_of(torch.tensor(b)))
    assert both == range_of(torch.tensor(a + b))


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (5, 4)])
def test_any_shape_is_looked_at_in_pieces(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.randn(shape).T if len(shape) == 2 else torch.randn(shape)
    whole = range_of(tensor)
    monkeypatch.setattr(calibration, "_PIECE", 3)
    assert range_of(tensor) == whole
    assert whole.count == tensor.numel()
    assert whole.largest == max(tensor.abs().flatten().tolist(), default=0.0)


def test_shares_of_nothing_are_zero() -> None:
    held = range_of(torch.zeros(3))
    assert (held.share_of_zeros, held.share_below_normal, held.largest) == (1.0, 0.0, 0.0)
    assert range_of(torch.empty(0)).share_of_zeros == 0.0


def test_ranges_survive_json(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(RANGES.to_json())
    assert read_ranges(tmp_path / "r.json") == RANGES


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(RANGES.to_json()), **fields})


def held(**fields: object) -> str:
    row = json.loads(RANGES.to_json())["values"]["x"]
    return changed(values={"x": {**row, **fields}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "the document"),
        (changed(version=1), "version"),
        (changed(unknown=1), "there is no field unknown"),
        (changed(batches=0), "batches"),
        (changed(batches="2"), "batches"),
        (changed(batches=True), "batches"),
        (changed(margin_bits=99), "margin_bits"),
        (changed(release=1), "release"),
        (changed(fingerprint=None), "fingerprint"),
        (changed(values=[]), "values"),
        (held(unknown=1), "values.x.unknown"),
        (held(largest_finite=math.inf), "finite number"),
        (held(largest_finite=math.nan), "finite number"),
        (held(largest_finite=-1.0), "values.x.largest_finite"),
        (held(largest_finite=4.0), "largest number is not among its exponents"),
        (held(largest_finite=1e300, exponents=[[996, 3]]), "exponents"),
        (held(count=5), "do not add up"),
        (held(count=-4), "values.x.count"),
        (held(exponents=[[1, 1], [0, 2]]), "are not in ascending order"),
        (held(exponents=[[0, 2], [0, 1]]), "are not in ascending order"),
        (held(exponents=[[0, 3], [1, 0]]), "no numbers"),
        (held(exponents=[[0, 3, 1]]), "exponents"),
    ],
)
def test_hostile_ranges_are_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(BadInput, match="this is not a file of ranges") as raised:
        Ranges.from_json(text, "r.json")
    assert says in str(raised.value)
    assert len(str(raised.value)) < 300


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_ranges(tmp_path / "nowhere.json")
