"""Try one malformed ONNX file in this process, and watch the files that it touches."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.robustness.malformed_models import SECRET, make
from bench.robustness.malformed_seeds import seeds
from bench.shared_arguments import share_arguments
from mpcompile.cli import exit_code
from mpcompile.errors import BadInput
from mpcompile.onnx import sessions
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph import bounded_inference

LIMIT = 10.0
"""Limit of seconds for a file."""
LONGEST_RUN = 1.0
"""Seconds until a run or an inference is stopped; the command itself waits for minutes."""
MEMORY = 4 << 30
"""Limit of address space in bytes for a file."""

_FORBIDDEN = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
_FORBIDDEN |= {"socket.connect", "socket.bind", "ctypes.dlopen", "urllib.Request", "os.fork"}
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
_CHANGES |= {"os.truncate", "os.chown", "os.utime", "shutil.rmtree", "os.listdir", "os.scandir"}


@dataclass(frozen=True, slots=True)
class Case:
    """A file to make and its folder; see `malformed_models.make`.

    Attributes:
        seed: the seed of all files.
        index: the number of this file.
        folder: the folder for it; it must not exist yet.
        harm: Python code to run as well; a test uses it to check that harm is noticed.
    """

    seed: int
    index: int
    folder: Path
    harm: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a file.

    Attributes:
        kind: the kind of damage.
        refused: whether `rewrite` refused it; ``said`` has the message of the command line.
        code: exit code of the command line.
        said: its output on stderr.
        wrong: the error that must not happen, or "".
        seconds: the whole time.
    """

    kind: str
    refused: bool
    code: int
    said: str
    wrong: str
    seconds: float


def attempt(case: Case) -> Outcome:
    """Make a file, rewrite it by the library and by the command line, and remove it."""
    watch = _watch()
    folder = case.folder.resolve()
    kind = make(case.seed, case.index, folder)
    output = folder / "out"
    output.mkdir()
    before = Path.cwd()
    os.chdir(output)
    tempfile.tempdir = str(output)
    started = time.monotonic()
    watch.start(folder)
    try:
        refused, wrong = _by_library(folder / "model" / "model.onnx", case.harm)
        code, said = _by_command(folder / "model" / "model.onnx", output / "out.onnx")
    finally:
        touched = watch.stop()
        tempfile.tempdir = None
        os.chdir(before)
    wrong = wrong or _wrong(refused, code, said, touched, folder)
    seconds = time.monotonic() - started
    if not wrong and seconds > LIMIT:
        wrong = f"took over {LIMIT:.0f} s"
    if not wrong:
        shutil.rmtree(folder)
    return Outcome(kind, refused, code, said, wrong, seconds)


def _by_library(file: Path, harm: str) -> tuple[bool, str]:
    try:
        exec(harm)
        rewrite(file)
    except BadInput as error:
        lines = str(error).splitlines()
        return True, "" if len(lines) == 1 else f"said {len(lines)} lines"
    except BaseException as error:
        return True, f"raised {type(error).__name__}: {str(error)[:300]}"
    return False, ""


def _by_command(file: Path, output: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code([str(file), "-o", str(output)])
    return code, err.getvalue()


def _wrong(refused: bool, code: int, said: str, touched: str, folder: Path) -> str:
    """Return an error that must not happen, or ""."""
    if touched:
        return touched
    if code not in (0, 1, 2):
        return f"exit code {code}: {said.strip()[:300]}"
    if refused and code != 2:
        return f"refused by rewrite, but exit code {code}"
    if code == 2 and (said.count("\n") != 1 or not said.rstrip().endswith(".")):
        return f"no one sentence: {said[:300]!r}"
    left = sorted(path for path in (folder / "out").rglob("*"))
    if code and left:
        return f"left {left[0].name}"
    for path in left:
        if path.is_file() and SECRET in path.read_bytes():
            return f"{path.name} holds what lies outside"
    return ""


class _Watch:
    """A record of the files that this process opens or changes outside a folder and libraries."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.found = ""
        libraries = {sys.prefix, sys.base_prefix, *sys.path, "/proc/self", "/sys"}
        self.readable = tuple(str(Path(place).resolve()) + os.sep for place in libraries if place)
        sys.addaudithook(self._saw)

    def start(self, folder: Path) -> None:
        self.folder, self.found = folder, ""

    def stop(self) -> str:
        self.folder = None
        return self.found

    def _saw(self, event: str, arguments: tuple[object, ...]) -> None:
        folder = self.folder
        if folder is None or self.found:
            return
        if event == "subprocess.Popen" and arguments[0] == sys.executable:
            return  # bounded shape inference
        if event in _FORBIDDEN:
            self.found = f"{event} {arguments!r:.200}"
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, flags = os.fsdecode(arguments[0]), arguments[2]
            reads = isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not self._allowed(path, folder, reads):
                self.found = f"opened {path}"
        elif event in _CHANGES and arguments and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if not self._allowed(path, folder, event in ("os.listdir", "os.scandir")):
                self.found = f"{event} {path}"

    def _allowed(self, path: str, folder: Path, reads: bool) -> bool:
        real = os.path.realpath(path)
        inside = (str(folder / "model"), str(folder / "out"))
        if real in inside or real.startswith(tuple(place + os.sep for place in inside)):
            return True
        if real == os.devnull:
            return True
        return reads and (real + os.sep).startswith(self.readable)


@cache
def _watch() -> _Watch:
    """Load the libraries, bound this process, and start to watch it."""
    share_arguments()
    sessions.LONGEST_RUN = bounded_inference.LONGEST = LONGEST_RUN
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(seeds()["wide"].SerializeToString())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exit_code([str(file), "-o", str(file.with_name("out.onnx"))])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return _Watch()
