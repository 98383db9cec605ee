"""The result of tune, against planted faults and against a trial of every set of ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from planted.faulty import HALF, Attention, Both, Bounded, Branch, Product, SmallNorm, workload
from torch import nn

from mpcompile import BadInput, CheckFailed, Policy
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload, epochs
from mpcompile.search.judges import Judge, ScoreJudge, ToleranceJudge, Verdict
from mpcompile.search.trial_log import TrialLog
from mpcompile.search.tune import (
    Candidates,
    Search,
    Tuned,
    candidates,
    score_in_full_precision,
    search_in_words,
    tune,
)
from mpcompile.step.transformed import Choices, Transformed
from mpcompile.train.train_step import TrainStep

TOLERANCE = 0.25
pytestmark = pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")


def asked(work: Workload, policy: Policy, steps: int = 0) -> Search:
    return Search(policy, None, None, (), tuple(islice(epochs(work), steps + 2)), steps)


def search(
    work: Workload,
    want: Search,
    folder: Path,
    judge: Judge | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Tuned, Candidates, TrialLog]:
    found = candidates(work, want)
    judge = judge or ToleranceJudge(TOLERANCE, want.batches, want.steps)
    log = TrialLog.begin(folder / "x.tune.jsonl", search_in_words(work, want, found, "it"))
    return tune(work, want, found, judge, log, say), found, log


class Remembering:
    """A judge that transforms and judges each set of ops once: some searches repeat others."""

    def __init__(self, judge: Judge, patch: pytest.MonkeyPatch) -> None:
        self._judge = judge
        self._made: dict[str, Transformed] = {}
        self._verdicts: dict[int, Verdict] = {}
        patch.setattr("mpcompile.search.tune.transform", self._transform)

    def _transform(self, work: Workload, choices: Choices) -> Transformed:
        key = repr(choices)
        if key not in self._made:
            self._made[key] = transform(work, choices)
        return self._made[key]

    def __call__(self, transformed: Transformed) -> Verdict:
        if id(transformed) not in self._verdicts:
            self._verdicts[id(transformed)] = self._judge(transformed)
        return self._verdicts[id(transformed)]


def names(tuned: Tuned) -> list[str]:
    return [item.op for item in tuned.returned]


def with_full(work: Workload, want: Search, ops: tuple[str, ...]) -> bool:
    """Whether the tolerance holds with some ops in FP32, without tune's own code."""
    policy = replace(want.policy, full=tuple(f"node:{op}" for op in ops))
    model, optimizer = copy.deepcopy((work.model, work.optimizer))
    made = transform(replace(work, model=model, optimizer=optimizer), Choices(policy=policy))
    return ToleranceJudge(TOLERANCE, want.batches, want.steps)(made).holds


PLANTED = [
    # A tensor beyond 65504 is made by one op and read by the next: both must be FP32.
    (Bounded, Policy(), ["linear_1", "tanh"]),
    (Attention, HALF, ["matmul", "mul"]),
    # What follows the logits is free to be FP32, so that one override is enough.
    (Attention, Policy(), ["matmul"]),
    (SmallNorm, HALF, ["pow_1", "mean", "add", "rsqrt"]),
    (SmallNorm, Policy(), []),
    (Product, HALF, ["mul", "mul_1", "div"]),
    (Branch, Policy(), ["true_graph_0.linear"]),
    (Both, HALF, ["linear_1", "tanh", "mul", "mul_1", "div"]),
]


@pytest.mark.parametrize(("kind", "policy", "culprits"), PLANTED)
def test_only_planted_faults_are_found(
    kind: type[nn.Module], policy: Policy, culprits: list[str], tmp_path: Path
) -> None:
    work = workload(kind)
    want = asked(work, policy)
    tuned, found, log = search(work, want, tmp_path)
    assert names(tuned) == culprits
    assert set(culprits) <= {op.id for op in found.ops}
    assert tuned.trials == len(log.trials) <= 3 * len(culprits) + 4
    for item in tuned.returned:
        assert item.before.error > TOLERANCE > item.after
        assert item.where.file.endswith("faulty.py")
    assert with_full(work, want, tuple(culprits))


@pytest.mark.parametrize(("kind", "policy"), [(Bounded, Policy()), (Product, HALF)])
def test_the_result_is_the_smallest_of_all_sets(
    kind: type[nn.Module], policy: Policy, tmp_path: Path
) -> None:
    work = workload(kind)
    want = asked(work, policy)
    tuned, found, _ = search(work, want, tmp_path)
    ops = [op.id for op in found.ops]
    sets = [some for size in range(len(ops) + 1) for some in combinations(ops, size)]
    enough = [some for some in sets if with_full(work, want, some)]
    assert min(enough, key=len) == tuple(names(tuned))
    assert not any(set(some) < set(names(tuned)) for some in enough)


def test_the_users_objects_do_not_change(tmp_path: Path) -> None:
    work = workload(Bounded, rate=0.1)
    assert work.optimizer is not None
    before = copy.deepcopy((work.model.state_dict(), work.optimizer.state_dict()))
    search(work, asked(work, Policy(), steps=1), tmp_path)
    after = work.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before[0].items())
    assert str(work.optimizer.state_dict()) == str(before[1])


def test_the_measurement_is_after_training(tmp_path: Path) -> None:
    """A weight that grows by training overflows only then."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rise, self.end = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.end(torch.tanh(self.rise(x)))
            return result

    work = workload(Growing, rate=3e5)
    assert names(search(work, asked(work, Policy()), tmp_path)[0]) == []
    assert "linear" in names(search(work, asked(work, Policy(), steps=2), tmp_path)[0])


def test_an_override_of_a_node_holds_and_wider_ones_give_way(tmp_path: Path) -> None:
    work = workload(Bounded)
    found = candidates(work, asked(work, Policy(half=("node:tanh", "linear", "rise", "linear_2"))))
    assert found.pinned == ("tanh", "linear_2")
    assert [op.id for op in found.ops] == ["linear", "relu", "linear_1"]
    with pytest.raises(CheckFailed, match=r"all other 4 ops in FP32.*that name nodes: tanh"):
        search(work, asked(work, Policy(half=("node:tanh",))), tmp_path)


def test_a_program_that_is_wrong_in_fp32_too_is_reported(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.end(torch.log(x - x))
            return result * 0

    work = workload(Broken)
    with pytest.raises(
        CheckFailed, match=r"not hold in FP32 either: the loss is nan; change the p"
    ):
        search(work, asked(work, Policy()), tmp_path)


def test_a_program_without_a_loss_is_refused() -> None:
    work = replace(workload(Bounded), loss=None, optimizer=None)
    with pytest.raises(BadInput, match="no loss"):
        candidates(work, asked(work, Policy()))


def trained(step: TrainStep, work: Workload) -> float:
    assert work.data is not None
    for batch in work.data:
        loss = step(*batch)
    return -float(loss)


def test_a_score_decides_instead(tmp_path: Path) -> None:
    work = workload(Attention, rate=0.01)
    want = asked(work, HALF)
    log = TrialLog.begin(tmp_path / "y.jsonl", {})
    reference = score_in_full_precision(work, want, trained, None, log)
    model, optimizer = copy.deepcopy((work.model, work.optimizer))
    assert optimizer is not None
    for batch in work.data or ():  # as plain PyTorch trains it
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
    assert reference == pytest.approx(-float(loss.detach()), rel=1e-4)
    assert TrialLog.resume(tmp_path / "y.jsonl", {}).reference == reference
    tuned, _, _ = search(work, want, tmp_path, ScoreJudge(trained, reference - 0.01))
    assert names(tuned) == ["matmul", "mul"]
    with pytest.raises(CheckFailed, match="not hold in FP32 either: the score is"):
        search(work, want, tmp_path, ScoreJudge(trained, reference + 1))


def test_a_score_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    work = workload(Bounded)
    want = asked(work, Policy())

    def broken(step: TrainStep, work: Workload) -> float:
        raise ValueError("no luck")

    with pytest.raises(
        BadInput, match=r"test_tune.py:\d+: the function raised ValueError: no luck"
    ):
        search(work, want, tmp_path, ScoreJudge(broken, 0.0))
    with pytest.raises(BadInput, match="returned a NoneType, not a number"):
        search(work, want, tmp_path, ScoreJudge(lambda *_: None, 0.0))


@pytest.mark.parametrize("kind", [Bounded, SmallNorm])
def test_an_interrupted_search_ends_with_the_same_result(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = workload(kind)
    want = asked(work, HALF)
    whole, found, log = search(work, want, tmp_path)
    words = search_in_words(work, want, found, "it")
    lines = log.path.read_text().splitlines(keepends=True)
    judge = Remembering(ToleranceJudge(TOLERANCE, want.batches, want.steps), monkeypatch)
    path = tmp_path / "again.jsonl"
    for count in range(1, len(lines) + 1):
        for torn in ("", lines[count][: len(lines[count]) // 2] if count < len(lines) else ""):
            if torn and count % 3:
                continue
            path.write_text("".join(lines[:count]) + torn)
            resumed = TrialLog.resume(path, words)
            new: list[str] = []
            again = tune(work, want, found, judge, resumed, new.append)
            assert replace(again, seconds=0) == replace(whole, seconds=0)
            told = sum('"trial"' in line for line in lines[:count])
            assert len(new) == whole.trials - told
            assert [eval_free(line) for line in path.read_text().splitlines()] == [
                eval_free(line) for line in lines
            ]


def eval_free(line: str) -> str:
    """Return a line without its seconds."""
    return line.partition(',"seconds"')[0].strip()


def test_an_interrupt_keeps_the_finished_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = workload(Bounded)
    want = asked(work, Policy())
    found = candidates(work, want)
    whole, _, log = search(work, want, tmp_path)
    path = tmp_path / "cut.jsonl"
    judge = Remembering(ToleranceJudge(TOLERANCE, want.batches, 0), monkeypatch)
    for stop in range(whole.trials):
        count = 0

        def impatient(transformed: Transformed, stop: int = stop) -> Verdict:
            nonlocal count
            count += 1
            if count > stop:
                raise KeyboardInterrupt
            return judge(transformed)

        begun = TrialLog.begin(path, {})
        with pytest.raises(KeyboardInterrupt):
            tune(work, want, found, impatient, begun, lambda _: None)
        resumed = TrialLog.resume(path, {})
        assert len(resumed.trials) == stop
        assert names(tune(work, want, found, judge, resumed, lambda _: None)) == names(whole)
    assert len(log.trials) == whole.trials
