"""Damaged or hostile checkpoints are found before use, and reported in one sentence.

A hostile checkpoint has a manifest that fits: a hash is not a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from programs.small_step import batch, compiled, net
from safetensors.torch import load_file, save_file

from mpcompile import BadInput, TrainStep
from mpcompile.errors import DamagedCheckpoint
from mpcompile.train.checkpoint_file import CHECKPOINT, MANIFEST, PLAN, STATE, read_checkpoint
from mpcompile.train.checkpoint_folder import checkpoints, newest

FLIPS = 200
LIMIT = 1 << 30
FILES = (STATE, CHECKPOINT, PLAN, MANIFEST)


@pytest.fixture(scope="module")
def step() -> TrainStep:
    return compiled(net())


@pytest.fixture(scope="module")
def saved(step: TrainStep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    run = tmp_path_factory.mktemp("run")
    for number in range(2):
        step(*batch(number))
        step.save(run)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_one_flipped_bit_anywhere_is_found_and_the_older_checkpoint_loads(
    step: TrainStep, run: Path
) -> None:
    chance = random.Random(0)
    last, first = checkpoints(run)
    sizes = {name: 8 * (last / name).stat().st_size for name in FILES}
    for number in range(FLIPS):
        # Half of them anywhere, the others in each file in turn.
        name = (
            FILES[number // 2 % 4] if number % 2 else chance.choices(FILES, list(sizes.values()))[0]
        )
        bit = chance.randrange(sizes[name])
        flip(last / name, bit)
        opened, wrong = newest(run, LIMIT)
        assert opened.folder == first, (name, bit)
        assert len(wrong) == 1
        assert "\n" not in wrong[0]
        flip(last / name, bit)
    with pytest.warns(DamagedCheckpoint, match="SHA-256 is not the one .*step-00000001 is loaded"):
        flip(last / STATE, 12345)
        step.load(run)
    assert step.taken + step.skipped == 1


def test_every_bit_of_the_manifest_matters(run: Path) -> None:
    manifest = checkpoints(run)[0] / MANIFEST
    for bit in range(0, 8 * manifest.stat().st_size, 7):
        flip(manifest, bit)
        with pytest.raises(BadInput):
            read_checkpoint(manifest.parent, LIMIT)
        flip(manifest, bit)
    assert read_checkpoint(manifest.parent, LIMIT)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["removed", "empty", "cut", "longer"])
def test_an_incomplete_file_is_found(run: Path, name: str, change: str) -> None:
    last, first = checkpoints(run)
    content = (last / name).read_bytes()
    (last / name).unlink()
    if change != "removed":
        (last / name).write_bytes(
            {"empty": b"", "cut": content[:-1], "longer": content + b" "}[change]
        )
    opened, wrong = newest(run, LIMIT)
    assert opened.folder == first
    assert str(last / name) in wrong[0]


def test_a_damaged_checkpoint_is_replaced_when_its_step_runs_again(
    step: TrainStep, run: Path
) -> None:
    last, first = checkpoints(run)
    flip(last / STATE, 999)
    step.load(first)
    step(*batch(1))
    assert step.save(run) == last
    assert newest(run, LIMIT)[0].folder == last


def test_without_a_complete_checkpoint_loading_says_so(
    step: TrainStep, run: Path, tmp_path: Path
) -> None:
    for folder in checkpoints(run):
        flip(folder / PLAN, 5)
    with pytest.raises(BadInput, match=r"no checkpoint in this folder is complete \(.*SHA-256"):
        step.load(run)
    with pytest.raises(BadInput, match="there is no checkpoint in this folder"):
        step.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not complete"):
        step.load(tmp_path / "step-00000007")


def signed(folder: Path) -> None:
    """Write a manifest that fits the files of a folder, as an attacker can."""
    sums = {
        name: {
            "bytes": len(content := (folder / name).read_bytes()),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for name in (STATE, CHECKPOINT, PLAN)
    }
    write(folder / MANIFEST, {"version": 1, "files": sums})


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


OPENED: list[tuple[str, int]] | None = None


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every file that is opened, everything unpickled or run: an audit hook stays for ever."""
    if OPENED is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append((os.fsdecode(arguments[0]), arguments[2]))
    if event in ("pickle.find_class", "exec", "subprocess.Popen", "socket.connect"):
        OPENED.append((event, 0))


sys.addaudithook(note)


@contextmanager
def only_inside(folder: Path) -> Iterator[None]:
    global OPENED
    OPENED = []
    try:
        yield
    finally:
        opened, OPENED = OPENED, None
    outside = [path for path, _ in opened if not path.startswith(str(folder))]
    assert not [path for path in outside if not path.endswith((".py", ".pyc"))], outside


def refused(step: TrainStep, folder: Path) -> str:
    """Load a checkpoint; return the one sentence of the error, and check that nothing changed."""
    before = {name: value.clone() for name, value in step._bound.named().items()}
    with only_inside(folder), pytest.raises(BadInput) as refusal:
        step.load(folder)
    for name, value in step._bound.named().items():
        assert torch.equal(value, before[name])
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    return sentence


SUM = {"bytes": 1, "sha256": "0" * 64}
MANIFESTS: list[tuple[str, str]] = [
    (json.dumps({"version": 1, "files": {"../../etc/passwd": SUM}}), "etc/passwd"),
    (json.dumps({"version": 1, "files": {"/etc/passwd": SUM}}), "etc/passwd"),
    ('{"version":1,"files":{}}\n', "does not list state.safetensors"),
    ('{"version":2,"files":{}}\n', "version"),
    ('{"version":1,"version":1,"files":{}}\n', "as mpcompile writes it"),
    ('{"version":1,"files":{"plan.json":{"bytes":NaN,"sha256":""}}}\n', "bytes"),
    ('{"version":1,"files":{"plan.json":{"bytes":-1,"sha256":""}}}\n', "bytes"),
    ('{"version":1,"files":{"plan.json":{"bytes":1e400,"sha256":""}}}\n', "bytes"),
    ('{"version":1,"files":%s}\n' % ("[" * 2000), "manifest"),
    ('{"version":1,"files":{"a\\u001b[31m":{}}}\n', "manifest"),
    ("[" * 1000 + "]" * 1000, "manifest"),
    ("", "not JSON"),
    ("\x00\xff", "not JSON"),
    (" " * 5000, "which is too large"),
    ("null\n", "manifest"),
]


@pytest.mark.parametrize(("text", "why"), MANIFESTS)
def test_a_hostile_manifest(step: TrainStep, run: Path, text: str, why: str) -> None:
    folder = checkpoints(run)[0]
    (folder / MANIFEST).write_text(text)
    assert why in refused(step, folder)


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        document = json.loads((folder / CHECKPOINT).read_text())
        change(document)
        write(folder / CHECKPOINT, document)

    return act


def replaced(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / CHECKPOINT).write_text(text)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        state = load_file(folder / STATE)
        change(state)
        save_file(state, folder / STATE)

    return act


def deep(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def python_words(words: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda state: state.update({"random.2": words})


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a field more": (edited(lambda d: d.update(more=1)), "there is no field more"),
    "a field less": (edited(lambda d: d.pop("steps")), "steps is missing"),
    "negative": (edited(lambda d: d.update(steps=-1)), "steps"),
    "huge": (edited(lambda d: d.update(steps=10**30)), "steps"),
    "a long name": (edited(lambda d: d.update(torch="x" * 10**6)), "torch"),
    "nan": (edited(lambda d: d["groups"][0].update(lr=float("nan"))), "as mpcompile writes it"),
    "deep": (edited(lambda d: d.update(random=deep(150))), "nested"),
    "far too deep": (replaced("[" * 10**5), "not a checkpoint"),
    "twice": (replaced('{"version":1,"version":1}\n'), "not a checkpoint"),
    "not utf-8": (replaced("\udcff".encode("utf-8", "surrogatepass").hex()), "not a checkpoint"),
    "no groups": (edited(lambda d: d.update(groups=[])), "0 parameter groups"),
    "a strange tag": (
        edited(lambda d: d.update(random={"eval": "1"})),
        "which save() never writes",
    ),
    "no such tensor": (
        edited(lambda d: d.update(random={"tensor": "/etc"})),
        "save() never writes",
    ),
    "no random numbers": (
        edited(lambda d: d.update(random=None)),
        "state of the random generators is not valid",
    ),
    "an odd scale": (edited(lambda d: d["loss_scale"].update(initial=0.0)), "0 is not in"),
    "an odd rate": (edited(lambda d: d["groups"][0].update(lr="x")), "lr of parameter group 0"),
    "a tensor less": (tensors(lambda s: s.pop("model.one.weight")), "lacks 'model.one.weight'"),
    "a tensor more": (
        tensors(lambda s: s.update({"model.\x1b[31m\n": torch.ones(1)})),
        "this step has no",
    ),
    "another shape": (
        tensors(lambda s: s.update({"step.steps_taken": torch.ones(2, dtype=torch.int64)})),
        "int64[2]",
    ),
    "another dtype": (
        tensors(lambda s: s.update({"step.steps_taken": torch.ones(())})),
        "float32[]",
    ),
    "no safetensors": (lambda f: (f / STATE).write_bytes(b"x" * 100), "not a safetensors"),
    "a pickle": (lambda f: torch.save({}, f / STATE), "not a safetensors"),
    "a huge header": (
        lambda f: (f / STATE).write_bytes(b"\xff" * 8 + b"{}"),
        "not a safetensors",
    ),
    "no plan": (lambda f: (f / PLAN).write_text("{}"), "not a plan"),
    "python's words": (
        tensors(python_words(torch.zeros(3))),
        "state of the random generators is not valid",
    ),
    "large words": (
        tensors(python_words(torch.full((624,), 1 << 40))),
        "state of the random generators is not valid",
    ),
    "torch's state": (
        tensors(lambda s: s.update({"random.0": torch.zeros(5056, dtype=torch.uint8)})),
        "state of the random generators is not valid",
    ),
}


@pytest.mark.parametrize(("act", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_checkpoint(
    step: TrainStep, run: Path, act: Callable[[Path], object], why: str
) -> None:
    folder = checkpoints(run)[0]
    act(folder)
    signed(folder)
    assert why in refused(step, folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_opened(
    step: TrainStep, run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    file = checkpoints(run)[0] / name
    aside = tmp_path / "aside"
    file.rename(aside)
    if kind == "link":
        file.symlink_to(aside)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert "not a plain file" in refused(step, file.parent)


def test_a_state_of_a_terabyte_is_not_read(step: TrainStep, run: Path) -> None:
    folder = checkpoints(run)[0]
    size = 1 << 40
    os.truncate(folder / STATE, size)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][STATE]["bytes"] = size
    write(folder / MANIFEST, manifest)
    assert "which is too large" in refused(step, folder)


def test_links_among_the_checkpoints_do_not_count(run: Path, tmp_path: Path) -> None:
    (run / "step-99999999").symlink_to(checkpoints(run)[0])
    (run / "step-00000005").write_text("a file")
    (run / "step-5").mkdir()
    assert [folder.name for folder in checkpoints(run)] == ["step-00000002", "step-00000001"]
