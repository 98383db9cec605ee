"""Ten models of the zoo train, near FP32; ``python -m bench.zoo.models`` runs all of them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from bench.zoo.models import models, row_of, table

NAMES = (
    *("hf:bert", "hf:llama", "hf:mixtral", "hf:bart", "hf:vit", "hf:clip"),
    *("hf:mamba", "hf:wav2vec2", "hf:vilt", "hf:vit_mae"),
)
IN_PIECES = {"hf:vilt"}


@pytest.fixture(scope="module")
def zoo() -> dict[str, Any]:
    return dict(models())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_trains_and_is_near_fp32(name: str, zoo: dict[str, Any]) -> None:
    row = row_of(zoo[name])
    assert row["state"] == ("pieces" if name in IN_PIECES else "whole"), row
    assert row["near"], row
    assert row["losses"][-1] == row["losses"][-1]
    taken = len(row["losses"]) - row["skipped"]
    assert row["losses"][-1] < row["losses"][0] or taken == 0


def test_the_table_counts_states() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "state": "whole", "seconds": 3.0, "before_lowering": 2.0, "export": 1.0,
         "scales": [16.0, 8.0], "skipped": 0,
         "ours": 1e-3, "autocast": 2e-3, "near": True, "losses": [2.0, 1.0]},
        {"name": "b", "state": "not eager", "error": "ValueError"},
        {"name": "c", "state": "refused", "error": "no | way"},
    ]  # fmt: skip
    said = table(rows)
    assert said.startswith("2 models that eager PyTorch trains: 1 whole, 1 refused; ")
    assert (
        "; 1 began with a measured loss scale and skipped 0 of their first ten steps in all."
        in said
    )
    assert "| a | whole | 3.0 | 8 | 0 | 1.0e-03 | 2.0e-03 | 2.000 → 1.000 |" in said
    assert said.endswith("| c | refused |  |  |  |  |  | no / way |")
