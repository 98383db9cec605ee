"""Settings in pyproject.toml, and flags over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from mpcompile import BadInput, Level, LossScale, Policy, Precision
from mpcompile.lower.lower import Backend
from mpcompile.options.plan_flags import PlanFlags
from mpcompile.settings import Settings, find_settings

EVERYTHING = """\
[tool.mpcompile]
level = "careful"
precision = "bf16"
full = ["encoder.embed"]
half = ["gelu", "row:softmax"]
free = ["add_3"]
loss_scale = 1024
backend = "interpreter"
without = ["join_matmuls"]
"""


def settings_of(folder: Path, text: str) -> Settings:
    (folder / "pyproject.toml").write_text(text)
    return find_settings(folder)


def test_every_setting_is_read(tmp_path: Path) -> None:
    found = settings_of(tmp_path, EVERYTHING)
    assert found.policy == Policy(
        Level.CAREFUL,
        Precision.BF16,
        full=("encoder.embed",),
        half=("gelu", "row:softmax"),
        free=("add_3",),
    )
    assert found.scale == LossScale.static(1024.0)
    assert found.backend == "interpreter"
    assert found.without == ("join_matmuls",)


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n", "tool = 3\n", "[tool.ruff]\n"])
def test_without_the_table_everything_is_at_its_default(tmp_path: Path, text: str) -> None:
    found = settings_of(tmp_path, text)
    assert (found.policy, found.scale, found.backend) == (Policy(), None, None)


def test_the_nearest_file_upward_counts(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.mpcompile]\nlevel = "careful"\n')
    assert find_settings(deep).level is Level.CAREFUL
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'inner'\n")
    assert find_settings(deep).level is Level.PAPER


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            'levle = "paper"',
            "there is no field levle (did you mean 'level'?); the settings are level, ",
        ),
        ('loss-scale = "none"', "there is no field loss-scale (did you mean 'loss_scale'?)"),
        ("zzz = 1", "there is no field zzz; the settings are"),
        ('level = "carefull"', "level should be 'careful', 'paper', 'tensor-cores-only' or 'fp32'"),
        ('precision = "float16"', "precision should be 'fp16', 'bf16' or 'fp32', not 'float16'"),
        ("full = [3]", "full[0] should be a valid string, not 3"),
        ('full = "gelu"', "full should be a list, not 'gelu'"),
        ("loss_scale = true", "loss_scale should be auto, dynamic, none or a number"),
        ('loss_scale = "big"', "or a number above 0, not 'big'"),
        ("loss_scale = nan", "or a number above 0, not nan"),
        ("loss_scale = -1", "or a number above 0, not -1"),
        ("loss_scale = inf", "above 0, not inf"),
        ('backend = "tvm"', "backend should be 'interpreter' or 'inductor', not 'tvm'"),
    ],
)
def test_what_is_no_setting_is_said_in_one_sentence(
    tmp_path: Path, line: str, sentence: str
) -> None:
    with pytest.raises(BadInput) as caught:
        settings_of(tmp_path, f"[tool.mpcompile]\n{line}\n")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'pyproject.toml'}: [tool.mpcompile]: ")
    assert sentence in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["[tool.mpcompile", "x = = 1", "\x00"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="this is not TOML"):
        settings_of(tmp_path, text)


def test_the_table_must_be_a_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the document should be"):
        settings_of(tmp_path, "[tool]\nmpcompile = 3\n")


def test_flags_beat_settings() -> None:
    settings = Settings(level=Level.CAREFUL, precision="bf16", loss_scale=8.0)
    over = settings.over({"level": "fp32", "loss_scale": "16"})
    assert (over.level, over.precision, over.loss_scale) == (Level.FP32, "bf16", 16.0)
    assert settings.over({}) == settings


def test_patterns_of_flags_are_added_and_move_a_pattern_that_both_name() -> None:
    settings = Settings(full=("encoder", "gelu"), half=("softmax",))
    over = settings.over({"full": ("decoder",), "half": ("gelu",)})
    assert over.full == ("encoder", "decoder")
    assert over.half == ("softmax", "gelu")


def test_passes_to_leave_out_are_added() -> None:
    settings = Settings(without=("join_matmuls",))
    assert settings.over({"without": ("other",)}).without == ("join_matmuls", "other")
    assert settings.over({}).without == ("join_matmuls",)


def test_a_flag_that_fits_no_setting_is_refused() -> None:
    with pytest.raises(BadInput, match="the command line: loss_scale should be"):
        Settings().over({"loss_scale": "big"})


@pytest.mark.parametrize(
    ("value", "scale"),
    [("", None), ("none", LossScale.none()), ("dynamic", LossScale()), (2, LossScale.static(2.0))],
)
def test_loss_scales(value: Any, scale: LossScale | None) -> None:
    assert Settings(loss_scale=value).scale == scale


def test_flags_settings_and_types_know_the_same_names() -> None:
    hints = PlanFlags.__annotations__
    for level in Level:
        assert f'"{level.value}"' in hints["level"].replace("'", '"')
    # These belong to one program or to one run, not to a project.
    names = set(hints) - {"plan", "ranges", "margin", "release", "verify"}
    assert names | {"backend", "lint"} == set(Settings.model_fields)
    backend: Any = Settings.model_fields["backend"].annotation
    assert backend == Backend | None
    assert get_args(Settings.model_fields["precision"].annotation) == ("fp16", "bf16", "fp32")
