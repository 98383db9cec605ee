"""The program to compile, read from the user's file; the file is code and is executed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mpcompile.errors import BadInput, CompileError
from mpcompile.program.batch import batch_of, to_call, without_gaps
from mpcompile.program.masters import own_dtypes, seen_in_own_dtypes
from mpcompile.program.node_tensors import NARROW

FIELDS = ("model", "batch", "loss", "optimizer", "data")


@dataclass(frozen=True)
class Workload:
    """A training program.

    Attributes:
        model: the module to train, in the mode (train or eval) in which it must be captured.
        batch: an example batch; its shapes are those of every step. A tuple or list holds the
            arguments of the loss behind the model, a dictionary its named ones. Each may be a
            tensor, or tensors, numbers, strings and None in lists, dictionaries and dataclasses.
        loss: ``loss(model, *batch)``, or ``loss(model, **batch)``, returns a 0-d FP32 tensor, or
            ``(loss, anything)``; None: only the forward graph of ``model(*batch)`` is compiled.
        optimizer: over the model's parameters; None if there is no loss.
        data: batches, one epoch per iteration; only ``mpcompile run`` needs it.
        origin: ``file:line`` of its definition, for error messages; None if unknown.
        own_dtypes: by name, the 16-bit dtypes of trained parameters, whose masters are FP32. By
            default the dtypes that they have now.
    """

    model: torch.nn.Module
    batch: Any
    loss: Callable[..., Any] | None = None
    optimizer: torch.optim.Optimizer | None = None
    data: Iterable[Any] | None = None
    origin: str | None = None
    own_dtypes: Mapping[str, torch.dtype] | None = None

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", None)
        for field, kind, what in (
            ("model", torch.nn.Module, "a torch.nn.Module"),
            ("optimizer", torch.optim.Optimizer | None, "a torch.optim.Optimizer"),
        ):
            if not isinstance(getattr(self, field), kind):
                got = type(getattr(self, field)).__name__
                raise BadInput(
                    f"the workload's {field} is of type {got}", self.origin, f"make it {what}"
                )
        if self.loss is not None and not callable(self.loss):
            raise BadInput(
                "the workload's loss cannot be called", self.origin, "make it loss(model, *batch)"
            )
        object.__setattr__(self, "batch", without_gaps(batch_of(self.batch, self.origin)))
        if (self.loss is None) != (self.optimizer is None):
            raise BadInput(
                "the workload has a loss or an optimizer, but not both",
                self.origin,
                "give both to train, neither to transform the forward graph",
            )
        if self.own_dtypes is None:
            object.__setattr__(self, "own_dtypes", own_dtypes(self.model, self.optimizer))

    def run(self, model: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the result of the loss, or of the model if there is none.

        Args:
            model: the model or a copy.
            tensors: those of the batch, or others in their places.
        """
        args, named = self.batch.arguments(tensors)
        result = self.function(model, *args, **named)
        return result if self.loss is None else _in_fp32(result)

    @property
    def function(self) -> Callable[..., Any]:
        """The loss, or the call of the model, with each parameter in the program's own dtype."""
        called = _call if self.loss is None else self.loss
        if not self.own_dtypes:
            return called
        own = self.own_dtypes

        def in_own_dtypes(model: torch.nn.Module, *args: Any, **named: Any) -> Any:
            with seen_in_own_dtypes(model, own):
                return called(model, *args, **named)

        return in_own_dtypes


def _call(model: torch.nn.Module, *args: Any, **named: Any) -> Any:
    return model(*args, **named)


def _in_fp32(result: Any) -> Any:
    """Cast a 16-bit loss, which may be the first of several results, to FP32."""
    if isinstance(result, torch.Tensor):
        return result.float() if result.dtype in NARROW else result
    if type(result) is tuple and result:
        return (_in_fp32(result[0]), *result[1:])
    return result


def position_in_file(error: BaseException, file: str) -> str:
    """Return ``file:line`` of the deepest frame of a traceback in the user's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{file}:{frames[-1].lineno}" if frames else file


def load(source: str) -> Workload:
    """Read a workload from ``model.py`` or ``package.module:name``.

    The file defines ``workload()`` that returns a `Workload`, or module-level names of the same
    fields (only `model` and `batch` must be there).

    Raises:
        BadInput: there is no such file or name, it raises while it runs, or a field is missing.
    """
    path = Path(source)
    name = "workload"
    if path.suffix == ".py" or path.exists():
        if not path.is_file():
            raise BadInput("there is no such file", source or None, "check the path")
        file = str(path.resolve())
        module = _run(file, lambda: module_at(path.resolve()))
    else:
        dotted, _, attribute = source.partition(":")
        name = attribute or name
        try:
            spec = importlib.util.find_spec(dotted)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise BadInput(
                f"there is no file and no module {source!r}",
                fix="give the path of a .py file, or package.module:name",
            )
        file = spec.origin
        module = _run(file, lambda: importlib.import_module(dotted))
    return _workload_of(module, name, file)


def load_function(source: str) -> Callable[..., Any]:
    """Read a function from ``file.py:name`` or ``package.module:name``.

    A file that was loaded before, such as that of the workload, is not run again.

    Raises:
        BadInput: there is no such file, module or function, or it raises while it is loaded.
    """
    holder, _, name = source.rpartition(":")
    path = Path(holder)
    if not holder or not name:
        raise BadInput(
            f"{source!r} does not name a function", fix="write file.py:function or module:function"
        )
    if path.suffix == ".py":
        if not path.is_file():
            raise BadInput("there is no such file", holder, "check the path")
        file = str(path.resolve())
        loaded = sys.modules.get(_module_name(path))
        same = loaded is not None and loaded.__file__ == file
        module = loaded if same else _run(file, lambda: module_at(path.resolve()))
    else:
        try:
            found = importlib.util.find_spec(holder)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise BadInput(f"there is no module {holder!r}", fix="give the path of a .py file")
        file = found.origin or holder
        module = _run(file, lambda: importlib.import_module(holder))
    function = getattr(module, name, None)
    if not callable(function):
        raise BadInput(f"the file defines no function {name}", file, "check the name")
    return function  # type: ignore[no-any-return]


def source_name(source: str) -> str:
    """Return the name that output files of a program begin with."""
    path = Path(source)
    return path.stem if path.suffix == ".py" else source.partition(":")[0].rpartition(".")[2]


def module_at(path: Path) -> ModuleType:
    """Run a Python file as `load` does: it can import modules from its own folder.

    Raises:
        BadInput: it is not a Python file.
    """
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput("this is not a Python file", str(path), "give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    # Registered, because dataclasses and pickling inside the file look up their module.
    sys.modules[name] = module
    # The folder of the file comes first, as it does with `python model.py`.
    if sys.path[0] != str(path.parent):
        sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def _module_name(path: Path) -> str:
    return f"mpcompile_user.{path.stem}"


def _run(file: str, action: Callable[[], Any]) -> Any:
    """Run the user's code; turn its exception into one sentence with the user's line."""
    try:
        return action()
    except CompileError as error:  # from Workload(...) itself
        error.where = error.where or position_in_file(error, file)
        raise
    except SyntaxError as error:
        raise BadInput(
            f"this is not valid Python: {error.msg}", f"{error.filename}:{error.lineno}"
        ) from error
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"the file raised {type(error).__name__} while loading: {_one_line(error)}",
            position_in_file(error, file),
            "run the file with python to see the whole traceback",
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]


def _workload_of(module: ModuleType, name: str, file: str) -> Workload:
    made = getattr(module, name, None)
    if made is None:
        return _from_names(module, name, file)
    origin = file
    if not isinstance(made, Workload):
        code = getattr(made, "__code__", None)
        origin = f"{file}:{code.co_firstlineno}" if code else file
        if not callable(made):
            raise BadInput(
                f"{name} is neither a function nor a Workload",
                origin,
                f"let {name} be a function that returns an mpcompile.Workload",
            )
        made = _run(file, made)
    if not isinstance(made, Workload):
        raise BadInput(
            f"{name}() returned {type(made).__name__}", origin, "return an mpcompile.Workload"
        )
    return replace(made, origin=origin)


def _from_names(module: ModuleType, name: str, file: str) -> Workload:
    missing = [field for field in FIELDS[:2] if not hasattr(module, field)]
    if missing:
        raise BadInput(
            f"the file defines neither {name}() nor these names of a workload: "
            + ", ".join(missing),
            file,
            f"define {name}() that returns an mpcompile.Workload",
        )
    fields = {field: getattr(module, field) for field in FIELDS if hasattr(module, field)}
    return Workload(**fields, origin=file)


def epochs(workload: Workload) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of a step for a workload's batches, an epoch after another, without end.

    Without data the example batch is all there is.

    Raises:
        BadInput: an epoch holds no batch.
    """
    while True:
        batch = None
        for batch in [workload.batch] if workload.data is None else workload.data:
            yield to_call(batch, workload.origin)
        if batch is None:
            raise BadInput(
                "the workload's data gave no batch",
                workload.origin,
                "give data that can be iterated more than once",
            )
