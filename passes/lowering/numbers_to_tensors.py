"""Turn Python numbers that were read from tensors into 0-d FP64 tensors.

An optimizer's ``step.item()`` and arithmetic on it are numbers in the traced graph. On a CPU that
is exact and free. On an accelerator, reading a number is a device-to-host copy: it stalls the step,
and a code generator cannot fuse it. So 0-d tensors do the same arithmetic there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CompileError
from mpcompile.step.graph import call
from mpcompile.step.recorded_number import power, truediv
from mpcompile.torch_private.ops import op_name

_ATEN = torch.ops.aten


def numbers_to_tensors(module: fx.GraphModule) -> int:
    """Rewrite a graph; return the number of nodes rewritten.

    Raises:
        CompileError: an op takes a number as an argument that cannot be a tensor.

    Example:
        >>> before_and_after(numbers_to_tensors, step_before("hoist_weight_casts").update)
        - _local_scalar_dense  number  _local_scalar_dense group0_lr
        - neg  number  neg _local_scalar_dense
        - add  f32[32]  add arena0_master arena0_grad alpha=neg
        + _to_copy_default  f64[]  _to_copy group0_lr dtype=f64
        + neg_default  f64[]  neg _to_copy_default
        + mul_tensor  f32[32]  mul arena0_grad neg_default
        + add_tensor  f32[32]  add arena0_master mul_tensor
        - return  arena0.master = add
        + return  arena0.master = add_tensor
    """
    graph = module.graph
    tensors: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        with graph.inserting_before(node):
            if node.target is _ATEN._local_scalar_dense.default:
                tensors[node] = call(graph, _ATEN._to_copy.default, *node.args, dtype=torch.float64)
            elif any(item in tensors for item in node.all_input_nodes):
                new = _rewrite(graph, node, tensors)
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    if new.meta["val"].dtype is not value.dtype:  # 0-d tensors promote to FP64
                        new = call(graph, _ATEN._to_copy.default, new, dtype=value.dtype)
                    new.meta = {**node.meta, "val": new.meta["val"]}
                    node.replace_all_uses_with(new)
                tensors[node] = new
    for node in reversed(tensors):
        graph.erase_node(node)
    if tensors:
        graph.lint()
    return len(tensors)


def _rewrite(graph: fx.Graph, node: fx.Node, tensors: dict[fx.Node, fx.Node]) -> fx.Node:
    args = [tensors.get(item, item) if isinstance(item, fx.Node) else item for item in node.args]
    if node.target in _ON_NUMBERS:
        return _ON_NUMBERS[node.target](graph, *args)
    kwargs = {
        key: tensors.get(item, item) if isinstance(item, fx.Node) else item
        for key, item in node.kwargs.items()
    }
    rewrite = _ON_TENSORS.get(op_name(node))
    if rewrite is None:
        raise CompileError(
            f"{op_name(node)} takes a number that was read from a tensor",
            fix="report this optimizer, and use backend='interpreter' on a CPU",
        )
    made = rewrite(graph, *args, **kwargs)
    assert isinstance(made, fx.Node)
    return made


def _binary(
    target: Callable[..., object], reflected: Callable[..., object]
) -> Callable[..., fx.Node]:
    """Return a rewrite of ``left op right`` where either may be a plain number."""

    def rewrite(graph: fx.Graph, left: object, right: object) -> fx.Node:
        if isinstance(left, fx.Node):
            return call(graph, target, left, right)
        return call(graph, reflected, right, left)

    return rewrite


def _quotient(graph: fx.Graph, left: object, right: object) -> fx.Node:
    if isinstance(left, fx.Node):
        return call(graph, _ATEN.div.Tensor, left, right)
    return call(graph, _ATEN.mul.Tensor, call(graph, _ATEN.reciprocal.default, right), left)


def _power(graph: fx.Graph, left: object, right: object) -> fx.Node:
    if not isinstance(left, fx.Node):
        return call(graph, _ATEN.pow.Scalar, left, right)
    overload = "Tensor_Tensor" if isinstance(right, fx.Node) else "Tensor_Scalar"
    return call(graph, getattr(_ATEN.pow, overload), left, right)


def _extreme(compare: Callable[..., object]) -> Callable[..., fx.Node]:
    """Return a rewrite of ``max`` or ``min``: the first argument unless the second is beyond it."""

    def rewrite(graph: fx.Graph, first: object, second: object) -> fx.Node:
        if isinstance(second, fx.Node):
            beyond = _COMPARE[compare](graph, second, first)
            return call(graph, _ATEN.where.self, beyond, second, _tensor(graph, first, second))
        beyond = _COMPARE[compare](graph, _tensor(graph, second, first), first)
        return call(graph, _ATEN.where.self, beyond, _tensor(graph, second, first), first)

    return rewrite


def _tensor(graph: fx.Graph, value: object, like: object) -> fx.Node:
    """Return a number as a 0-d tensor like another."""
    if isinstance(value, fx.Node):
        return value
    return call(graph, _ATEN.full_like.default, like, value)


def _comparison(name: str, reflected: str) -> Callable[..., fx.Node]:
    def rewrite(graph: fx.Graph, left: object, right: object) -> fx.Node:
        if not isinstance(left, fx.Node):
            return call(graph, getattr(_ATEN, reflected).Scalar, right, left)
        overload = "Tensor" if isinstance(right, fx.Node) else "Scalar"
        return call(graph, getattr(getattr(_ATEN, name), overload), left, right)

    return rewrite


_COMPARE: dict[object, Callable[..., fx.Node]] = {
    operator.eq: _comparison("eq", "eq"),
    operator.ne: _comparison("ne", "ne"),
    operator.lt: _comparison("lt", "gt"),
    operator.le: _comparison("le", "ge"),
    operator.gt: _comparison("gt", "lt"),
    operator.ge: _comparison("ge", "le"),
}

_ON_NUMBERS: dict[object, Callable[..., fx.Node]] = {
    operator.add: _binary(_ATEN.add.Tensor, _ATEN.add.Tensor),
    operator.sub: _binary(_ATEN.sub.Tensor, _ATEN.rsub.Scalar),
    operator.mul: _binary(_ATEN.mul.Tensor, _ATEN.mul.Tensor),
    truediv: _quotient,
    power: _power,
    max: _extreme(operator.gt),
    min: _extreme(operator.lt),
    **_COMPARE,
    operator.neg: lambda graph, value: call(graph, _ATEN.neg.default, value),
    torch.sym_float: lambda _graph, value: value,
}


def _times(graph: fx.Graph, value: object, factor: object) -> object:
    return value if factor == 1 else call(graph, _ATEN.mul.Tensor, value, factor)


def _add(graph: fx.Graph, left: object, right: object, alpha: object = 1) -> fx.Node:
    return call(graph, _ATEN.add.Tensor, left, _times(graph, right, alpha))


def _sub(graph: fx.Graph, left: object, right: object, alpha: object = 1) -> fx.Node:
    return call(graph, _ATEN.sub.Tensor, left, _times(graph, right, alpha))


def _addcmul(
    graph: fx.Graph, start: object, left: object, right: object, value: object = 1
) -> fx.Node:
    product = call(graph, _ATEN.mul.Tensor, _times(graph, left, value), right)
    return call(graph, _ATEN.add.Tensor, start, product)


def _addcdiv(
    graph: fx.Graph, start: object, left: object, right: object, value: object = 1
) -> fx.Node:
    quotient = call(graph, _ATEN.div.Tensor, _times(graph, left, value), right)
    return call(graph, _ATEN.add.Tensor, start, quotient)


def _lerp(graph: fx.Graph, start: object, end: object, weight: object) -> fx.Node:
    distance = call(graph, _ATEN.sub.Tensor, end, start)
    return call(graph, _ATEN.add.Tensor, start, _times(graph, distance, weight))


def _clamp(graph: fx.Graph, value: object, low: object = None, high: object = None) -> object:
    for name, bound in (("min", low), ("max", high)):
        overload = _ATEN.clamp.Tensor if isinstance(bound, fx.Node) else _ATEN.clamp.default
        if bound is not None:
            value = call(graph, overload, value, **{name: bound})
    return value


def _full(
    graph: fx.Graph, size: list[int], number: object, dtype: torch.dtype | None = None, **_: object
) -> fx.Node:
    one = call(graph, _ATEN._to_copy.default, number, dtype=dtype or torch.get_default_dtype())
    return call(graph, _ATEN.expand.default, one, size) if size else one


def _full_like(graph: fx.Graph, like: fx.Node, number: object, **_: object) -> fx.Node:
    value = like.meta["val"]
    return _full(graph, list(value.shape), number, value.dtype)


def _scalar_tensor(graph: fx.Graph, number: object, **options: Any) -> fx.Node:
    return _full(graph, [], number, **options)


def _masked_fill(graph: fx.Graph, value: object, mask: object, number: object) -> fx.Node:
    return call(graph, _ATEN.masked_fill.Tensor, value, mask, number)


_ON_TENSORS: dict[str, Callable[..., object]] = {
    "add": _add,
    "sub": _sub,
    "mul": lambda graph, left, right: call(graph, _ATEN.mul.Tensor, left, right),
    "div": lambda graph, left, right: call(graph, _ATEN.div.Tensor, left, right),
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "pow": _power,
    "clamp": _clamp,
    "full": _full,
    "full_like": _full_like,
    "scalar_tensor": _scalar_tensor,
    "masked_fill": _masked_fill,
    **{name: _COMPARE[getattr(operator, name)] for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}
