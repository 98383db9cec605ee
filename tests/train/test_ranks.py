"""A step on many processes, on gloo: equal to one process, skipped, saved, killed and resumed."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from programs.launch import TESTS, Nursery, alone, finished, torchrun
from safetensors.torch import load_file

from mpcompile import BadInput, data_parallel

PROGRAMS = TESTS / "ranks"
TRAINEE = PROGRAMS / "trainee.py"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("program", ["equality", "overflow", "checkpoints", "first_scale"])
def test_program(program: str, ranks: int, tmp_path: Path, nursery: Nursery) -> None:
    """Each asserts what its docstring says."""
    nursery.run(ranks, tmp_path / "out", PROGRAMS / f"{program}.py", tmp_path)


def command(folder: Path, *words: str) -> tuple[str, ...]:
    saving = ("--out", str(folder), "--checkpoint-every", "2")
    return ("-m", "--", "mpcompile", "run", str(TRAINEE), *saving, *words)


def run(
    ranks: int, folder: Path, *words: str, restarts: int = 0, **told: str
) -> subprocess.Popen[str]:
    return torchrun(ranks, *command(folder, *words), restarts=restarts, **told)


def weights(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """Return all saved state, without generators that the runs neither seed nor use."""
    held = load_file(folder / f"step-{steps:08}" / "state.safetensors")
    return {n: v for n, v in held.items() if n.startswith(("model.", "optimizer.", "step."))}


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_a_killed_process_is_resumed_to_the_same_bits(
    shard: tuple[str, ...], tmp_path: Path, nursery: Nursery
) -> None:
    """Torchrun starts all processes again, and they continue from the newest checkpoint."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    words = ("--steps", "10", "--resume", *shard)
    process = run(2, killed, *words, restarts=2, ONCE=str(tmp_path / "once"), AT="11")
    out = [nursery.run(2, tmp_path / "out", *command(calm, *words)), finished(process)]
    assert (tmp_path / "once").exists()
    assert "continuing from" in out[1]
    assert "continuing from" not in out[0]
    expected, found = weights(calm, 10), weights(killed, 10)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert out[0].count("10 steps: loss") == 1, "only the first process prints"


def test_sigterm_saves_after_the_same_step_on_all_processes(
    tmp_path: Path, nursery: Nursery
) -> None:
    out = tmp_path / "run"
    process = run(2, out, "--steps", "4000", ONCE=str(tmp_path / "once"), AT="9", WHAT="term")
    text, _ = process.communicate(timeout=200)
    assert "SIGTERM after step" in text, text[-3000:]
    saved = sorted(out.iterdir())[-1]
    steps = int(saved.name.removeprefix("step-"))
    assert 4 <= steps < 4000
    more = ("--steps", str(steps + 2), "--resume", "--shard")
    taken_over = nursery.run(4, tmp_path / "out", *command(out, *more))
    assert "continuing from" in taken_over, "more processes take it over, in slices"


def test_a_skipped_step_names_the_process_that_overflowed(tmp_path: Path, nursery: Nursery) -> None:
    log = tmp_path / "log.jsonl"
    words = command(tmp_path / "run", "--steps", "6", "--log", str(log))
    told = {"ONCE": "x", "AT": "4", "WHAT": "overflow", "WHO": "1"}
    out = nursery.run(2, tmp_path / "out", *words, **told)
    assert "was skipped by process 1" in out
    assert out.count("was skipped") == 1
    assert sum('"skipped":true' in line.replace(" ", "") for line in log.open()) == 1


@pytest.mark.parametrize("way", ["shard", "whole"])
def test_after_a_lost_process_the_others_exit_with_a_sentence(way: str) -> None:
    """These processes have no launcher, so they must notice the loss by themselves."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    ranks = [alone(rank, 3, port, PROGRAMS / "endless.py", way) for rank in range(3)]
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[0]
        ranks[1].kill()
        for process in (ranks[0], ranks[2]):
            text, _ = process.communicate(timeout=60)
            assert process.returncode == 4, text
            assert "another process of this run is gone" in text
            assert "newest checkpoint" in text
    finally:
        for process in ranks:
            process.kill()


def test_the_example_of_the_page_learns() -> None:
    example = TESTS.parent / "docs/examples/many_processes.py"
    text, _ = torchrun(2, example).communicate(timeout=400)
    # Not how it ended: threads of gloo can abort a process that has done its work (torch 2.13).
    found = re.search(r"4 tensors, loss (\d\.\d+)", text)
    assert found is not None, text[-3000:]
    assert float(found[1]) < 0.5 < log(4)  # before training


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(BadInput, match=r"no process group yet; start the script with torchrun"):
        data_parallel()


@pytest.mark.parametrize("words", [["--shard"], ["--reduce", "float16"]])
def test_flags_of_many_processes_are_refused_for_an_onnx_step(
    words: list[str], tmp_path: Path
) -> None:
    import mpcompile.cli

    (tmp_path / "train.onnx").touch()
    code: Any = mpcompile.cli.exit_code(["run", str(tmp_path / "train.onnx"), *words])
    assert code == 2
