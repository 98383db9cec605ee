"""What a ``state_dict()`` returns as JSON, with its tensors apart.

Schedulers and loaders keep more than JSON knows: tuples, dictionaries with numbers as keys, an
infinite best loss, the state of a generator as a tensor. Nothing else is taken, and nothing is
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
    """Return a value as JSON can hold it; `unpack` gives it back.

    Args:
        value: None, a bool, number, string or tensor, or lists, tuples, dictionaries and counters
            of such.
        name: what it belongs to; tensors are named by it.
        tensors: takes the tensors; not copied.

    Raises:
        BadInput: there is something else in it.
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
        f"the state of {name} holds {short(value)}, which is {type(value).__name__}",
        fix="a checkpoint takes numbers, strings, tensors, lists and dictionaries of such",
    )


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor], depth: int = 0) -> Any:
    """Return what was given to `pack`.

    Args:
        packed: comes from a file, so from anyone.
        tensors: what the file's tensors are, by name.
        depth: of what it lies in.

    Raises:
        BadInput: `pack` has not made it.
    """
    if depth > _DEEPEST:
        raise BadInput(f"a state is nested more than {_DEEPEST} deep")
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
    raise BadInput(f"a state holds {short(packed)}, which is nothing that is saved")
