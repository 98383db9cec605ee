"""Make 16-bit models of real ONNX files: ours beside its peers, on realistic inputs.

``python -m bench.onnx.real_files [--files ...] [--tools ...] [--lines FILE] [--packages FOLDER]``

The 24 files come in seven packages, which are installed by name and version into a folder, a
temporary one by default. Each tool gets each file in a process of its own. A line of JSON a file is
added to ``--lines``; a file that has a line there is not tried again. Then the table is printed.
The models run in ONNX Runtime on the CPU as users run them, with its optimizer, on three batches
(`bench.onnx.real_data`). The error of an output is that of `mpcompile.onnx.comparison`: of
probabilities the share of 1 that is elsewhere, of other outputs relative to the largest magnitude.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from bench.isolated import Failure, Isolated
from bench.machine import describe as describe_machine
from bench.onnx.real_data import Batch, batches, known
from bench.onnx.tools import converter_common, runtime_transformers_sorted
from mpcompile.errors import CompileError
from mpcompile.onnx.comparison import error_between
from mpcompile.onnx.rewrite import given_model
from mpcompile.onnx.roles import roles
from mpcompile.search.onnx_tune import tune_onnx

PACKAGES = {
    "silero-vad": "6.2.3",
    "openwakeword": "0.4.0",
    "rapidocr-onnxruntime": "1.4.4",
    "ddddocr": "1.6.1",
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "khmersm": "1.4.2",
}
MODELOPT = (
    "nvidia-modelopt==0.47.0",
    "onnx-graphsurgeon==0.6.1",
    "onnxslim==0.1.98",
    "polygraphy==0.53.6",
    "nvidia-ml-py==13.615.71",
    "cppimport==26.4.17",
    "lief==1.0.0",
)
"""What ModelOpt's converter needs beside the packages that the bench has anyway."""
TOOLS = ("ours", "onnxconverter-common", "onnxruntime.transformers, sorted", "ModelOpt")
WITHIN = 2.0**-6
_LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Task:
    """One file and one tool."""

    name: str
    file: str
    tool: str
    folder: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool made of a file.

    Attributes:
        what: ``within``, ``stays FP32`` (nothing became 16 bits), ``too far``,
            ``not finite``, ``does not load``, ``refused``, ``raised`` or ``not installed``.
        why: the first line of an error.
        error: the largest error of an output; None if there is none, or it is infinite.
        seconds: to convert; ours includes its comparison and search.
        size: bytes of the new model.
        ratio: that over the bytes of the old one.
    """

    what: str
    why: str = ""
    error: float | None = None
    seconds: float | None = None
    size: int | None = None
    ratio: float | None = None


def installed(folder: Path, tools: list[str]) -> None:
    """Install the packages' files, without what they depend on, where they are not yet.

    ModelOpt gets a folder too. If it cannot be installed, it is "not installed" in the table.
    """
    for name, number in PACKAGES.items():
        if not (folder / name).is_dir():
            _pip(folder / name, f"{name}=={number}").check_returncode()
    if "ModelOpt" in tools and not (folder / "modelopt").is_dir():
        _pip(folder / "modelopt", *MODELOPT)


def _pip(target: Path, *packages: str) -> subprocess.CompletedProcess[bytes]:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    return subprocess.run([*pip, *packages], check=False, stderr=subprocess.DEVNULL)


def convert(task: Task) -> Outcome:
    """Convert a file with one tool, and run what it made."""
    file = Path(task.file)
    given = batches(task.name, file)
    started = time.perf_counter()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            made = _made(task, file, given)
    except CompileError as error:
        return Outcome("refused", error.what, seconds=time.perf_counter() - started)
    except ImportError as error:
        return Outcome("not installed", _line(error))
    except Exception as error:
        return Outcome("raised", _line(error), seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    data = made.SerializeToString()
    before = onnx.load(file).ByteSize()
    facts: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "size": len(data),
        "ratio": round(len(data) / before, 3),
    }
    try:
        found = _run(data, given)
    except Exception as error:
        return Outcome("does not load", _line(error), **facts)
    wanted, known_roles = _run(str(file), given), roles(given_model(file))
    worst = max(
        error_between(one[name], other.get(name), known_roles.get(name))
        for one, other in zip(wanted, found, strict=True)
        for name in one
    )
    what = "within" if worst <= WITHIN else "too far" if isfinite(worst) else "not finite"
    if _narrow_tensors(made.graph) <= _narrow_tensors(onnx.load(file).graph):
        what = "stays FP32"
    return Outcome(what, error=float(f"{worst:.3g}") if isfinite(worst) else None, **facts)


def _made(task: Task, file: Path, given: list[Batch]) -> onnx.ModelProto:
    if task.tool == "ours":
        proto: onnx.ModelProto = ir.to_proto(tune_onnx(file, given).rewritten.model)
        return proto
    model = onnx.load(file)
    if task.tool == "onnxconverter-common":
        return converter_common(model)
    if task.tool == "ModelOpt":
        sys.path.append(str(Path(task.folder) / "modelopt"))
        from modelopt.onnx.autocast import convert_to_mixed_precision

        with tempfile.TemporaryDirectory() as folder:
            calibration = Path(folder) / "given.npz"
            np.savez(calibration, **given[0])  # type: ignore[arg-type]
            done: onnx.ModelProto = convert_to_mixed_precision(
                str(file),
                low_precision_type="fp16",
                calibration_data=str(calibration),
                keep_io_types=True,
            )
        return done
    return runtime_transformers_sorted(model)


def _narrow_tensors(graph: onnx.GraphProto) -> int:
    """Return how many weights and casts of a graph are 16 bits, with those of inner graphs."""
    half = onnx.TensorProto.FLOAT16
    found: int = sum(tensor.data_type == half for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            cast = node.op_type == "Cast" and attribute.name == "to" and attribute.i == half
            found += bool(cast) + int(attribute.t.data_type == half)
            if attribute.HasField("g"):
                found += _narrow_tensors(attribute.g)
    return found


def _run(model: str | bytes, given: list[Batch]) -> list[dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return [dict(zip(names, session.run(names, batch), strict=True)) for batch in given]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def versions() -> dict[str, str]:
    """Return the versions of the runtime, the tools and the packages."""
    found = {}
    for name in ("onnx", "onnxruntime", "onnxruntime-gpu", "onnxconverter-common"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found |= dict([MODELOPT[0].split("==")])
    return found | PACKAGES


def table(lines: list[dict[str, Any]], tools: list[str]) -> str:
    """Return the outcomes in Markdown: a row a file, and how many files each tool gets right."""
    head = f"| file | {' | '.join(tools)} |\n|---|{'---|' * len(tools)}"
    rows = [
        f"| {line['file']} | {' | '.join(_cell(line['outcomes'][tool]) for tool in tools)} |"
        for line in lines
    ]
    right = [
        sum(line["outcomes"][tool]["what"] in ("within", "stays FP32") for line in lines)
        for tool in tools
    ]
    last = f"| **right** | {' | '.join(f'**{n} of {len(lines)}**' for n in right)} |"
    return "\n".join([head, *rows, last])


def _cell(outcome: dict[str, Any]) -> str:
    words = [outcome["what"]]
    if outcome["error"] is not None:
        words.append(f"{outcome['error']:.1e}")
    if outcome["seconds"] is not None:
        words.append(f"{outcome['seconds']:.1f} s")
    if outcome["ratio"] is not None:
        words.append(f"{100 * outcome['ratio']:.0f} %")
    return ", ".join(words)


def main() -> None:
    """Convert and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", nargs="+", default=list(known()), choices=known())
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--lines", type=Path, default=Path("build/real_files.jsonl"))
    parser.add_argument("--packages", type=Path, help="where the packages are, or are installed")
    options = parser.parse_args()
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    options.lines.touch()
    print(json.dumps(describe_machine("cpu") | versions()), flush=True)
    with tempfile.TemporaryDirectory(prefix="real-files-") as temporary:
        folder = options.packages or Path(temporary)
        installed(folder, options.tools)
        _try(options.files, options.tools, folder, options.lines)
    lines = {line["file"]: line for line in map(json.loads, options.lines.read_text().splitlines())}
    print(table([lines[name] for name in options.files], options.tools))


def _try(names: list[str], tools: list[str], folder: Path, lines: Path) -> None:
    done = {line["file"]: line for line in map(json.loads, lines.read_text().splitlines())}
    left = [n for n in names if n not in done or set(tools) - done[n]["outcomes"].keys()]
    with Isolated(convert, workers=1, limit=_LIMIT) as isolated:
        for name in left:
            package, _, file = name.partition("/")
            [path] = (folder / package).rglob(file)
            outcomes = {}
            for tool in tools:
                [found] = isolated.map([Task(name, str(path), tool, str(folder))])
                outcome = Outcome(found.what, found.why) if isinstance(found, Failure) else found
                outcomes[tool] = asdict(outcome)
            with lines.open("a") as file_of_lines:
                file_of_lines.write(json.dumps({"file": name, "outcomes": outcomes}) + "\n")
            print(name, {tool: _cell(each) for tool, each in outcomes.items()}, flush=True)


if __name__ == "__main__":
    main()
