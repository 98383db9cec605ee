"""Which files, functions and classes are the user's: not torch, Python's own or a library below."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from os import sep
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import torch

from mpcompile.program.stack_lines import is_foreign

_STDLIB = f"{sysconfig.get_paths()['stdlib']}{sep}"
_INSTALLED = tuple(f"{sep}{name}{sep}" for name in ("site-packages", "dist-packages"))
_LIBRARIES = (
    *("numpy", "scipy", "sklearn", "pandas", "PIL", "matplotlib", "yaml", "regex"),
    *("lightning", "pytorch_lightning", "lightning_fabric", "pytest"),
    *("tqdm", "rich", "tensorboard", "wandb", "mlflow"),
    *("huggingface_hub", "tokenizers", "safetensors", "requests", "httpx", "urllib3", "filelock"),
)
"""Installed packages that are no part of a model, though a model's code calls them.

They keep state of their own that changes by itself, such as the thread of tqdm's monitor.
"""
_PLAIN_OBJECTS = ("types.SimpleNamespace", "argparse.Namespace")


@cache
def is_users_file(path: str) -> bool:
    """Whether a source file is the user's own, or of a package that models are made of."""
    if not path or is_foreign(path):
        return False
    for folder in _INSTALLED:
        _, found, rest = path.rpartition(folder)
        if found:
            return rest.partition(sep)[0].removesuffix(".py") not in _LIBRARIES
    return not path.startswith(_STDLIB)


def is_pythons_file(path: str) -> bool:
    """Whether a source file is of Python's own library."""
    installed = any(folder in path for folder in _INSTALLED)
    return path.startswith((_STDLIB, "<frozen")) and not installed


def is_users_code(function: FunctionType) -> bool:
    """Whether a function was written by the user, also at the prompt of an interpreter."""
    file = function.__code__.co_filename
    at_prompt = file.startswith("<") and function.__globals__.get("__name__") == "__main__"
    return at_prompt or is_users_file(file)


def is_users_module(module: ModuleType) -> bool:
    """Whether a module is one of the user's files."""
    return is_users_file(getattr(module, "__file__", None) or "")


@cache
def is_users_class(kind: type) -> bool:
    """Whether a class is defined in a file of the user's."""
    home = sys.modules.get(kind.__module__)
    return kind.__module__ == "__main__" or (home is not None and is_users_module(home))


@cache
def is_followed(kind: type) -> bool:
    """Whether the attributes of an instance are the user's: one base is, or it only holds them."""
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    return any(map(is_users_class, kind.__mro__)) or not names.isdisjoint(_PLAIN_OBJECTS)


@cache
def is_torch_module(kind: type[torch.nn.Module]) -> bool:
    """Whether a class is one of torch's layers or derives from one."""
    bases = [base for base in kind.__mro__ if base is not torch.nn.Module]
    return any(base.__module__.split(".")[0] == "torch" for base in bases)


def codes_in(code: CodeType) -> list[CodeType]:
    """Return a code object and those of the functions and classes written inside it."""
    inside = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [code, *(found for inner in inside for found in codes_in(inner))]


def slots_of(kind: type) -> list[str]:
    """Return the names of the attributes that a class keeps in slots."""
    return [
        name
        for owner in kind.__mro__
        for name, value in vars(owner).items()
        if isinstance(value, MemberDescriptorType) and not name.startswith("__")
    ]


def is_class_value(name: str, value: Any) -> bool:
    """Whether an entry of a class is a value, not a method, a property or Python's own."""
    own = name.startswith(("__", "_abc_"))
    return not own and not callable(value) and not hasattr(value, "__get__")
