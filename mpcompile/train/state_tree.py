"""The result of a ``state_dict()`` as JSON, with its tensors apart.

Schedulers and loaders keep values that JSON lacks: tuples, dictionaries with numbers as keys, an
infinite best loss, the state of a generator as a tensor. Other values are refused, and nothing is
pickled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.validation import short

_DEEPEST = 60


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value in a form that JSON can hold; `unpack` does the reverse.

    Args:
        value: None, a bool, number, string or tensor, or lists, tuples, dictionaries and counters
            of these.
        name: the owner of the value; the names of tensors begin with it.
        tensors: the tensors are added to it, not copied.

    Raises:
        BadInput: the value holds another type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, torch.Tensor):
        key = f"{name}.{len(tensors)}"
        tensors[key] = value.detach()
        return {"tensor": key}
    if isinstance(value, tuple | list):
        items = [pack(item, name, tensors) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[pack(k, name, tensors), pack(v, name, tensors)] for k, v in value.items()]}
    raise BadInput(
        f"the state of {name} holds {short(value)}of type {type(value).__name__}, which a "
        "checkpoint cannot store",
        fix="use numbers, strings and tensors, or lists and dictionaries of these",
    )


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor], depth: int = 0) -> Any:
    """Return the value that was given to `pack`.

    Args:
        packed: the packed value, from a file that is not trusted.
        tensors: the file's tensors by name.
        depth: how deep the value is nested.

    Raises:
        BadInput: `pack` cannot have made the value.
    """
    if depth > _DEEPEST:
        raise BadInput(f"a saved state is nested more than {_DEEPEST} deep")
    if packed is None or isinstance(packed, bool | int | float | str):
        return packed
    if isinstance(packed, list):
        return [unpack(item, tensors, depth + 1) for item in packed]
    if isinstance(packed, dict) and len(packed) == 1:
        ((kind, content),) = packed.items()
        if kind == "tensor" and isinstance(content, str) and content in tensors:
            return tensors[content]
        if kind == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(unpack(content, tensors, depth + 1))
        if kind in ("dict", "counter") and isinstance(content, list):
            items = unpack(content, tensors, depth + 1)
            if all(isinstance(item, list) and len(item) == 2 for item in items):
                keys = [key for key, _ in items]
                if all(key is None or isinstance(key, int | float | str) for key in keys):
                    return Counter(dict(items)) if kind == "counter" else dict(items)
    raise BadInput(f"a saved state holds {short(packed)}, which save() never writes")
