"""Compute the gradient of a weight with many readers by one matmul over the rows of all.

A cell in a loop or a shared layer reads one weight many times. Autograd makes a matmul for each
reader, rounds each product and adds them. One matmul over the joined rows adds in its FP32
accumulator, rounds once, and writes one product instead of many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpcompile.passes.gradient.sum_in_full import LEAST, additions_of, sums
from mpcompile.program.marks import BACKWARD, TERMS
from mpcompile.program.node_tensors import count_of
from mpcompile.step.graph import call
from mpcompile.torch_private.ops import op_name

_ATEN = torch.ops.aten
_ADD, _CAT, _FLIP = _ATEN.add.Tensor, _ATEN.cat.default, _ATEN.t.default
_MATMUL, _SUM = _ATEN.mm.default, _ATEN.sum.dim_IntList
_RESHAPES = frozenset(("view", "_unsafe_view", "reshape", "squeeze"))
"""Views with the same numbers in the same order; a slice would be a part of a sum."""

Rows = tuple[fx.Node, bool]
"""A matrix with one row a sample: a node, and whether it is the transpose of that node."""

Joined = dict[tuple[Rows, ...], fx.Node]
"""Matrices that stand one below the other, and the node that joins them."""


def join_weight_gradients(module: fx.GraphModule) -> int:
    """Join products, and the sums of their rows for the biases; return the number of sums.

    Products are joined if they have more numbers than the rows that they are made from. A weight
    that several large batches read is quicker as it is.

    Example:
        >>> def program(a, b, c, d, e, f, g, h):
        ...     return a.t() @ b + c.t() @ d + e.t() @ f + g.t() @ h
        ...
        >>> module = graph(program, backward="t", **{name: f16(1, 8) for name in "abcdefgh"})
        >>> before_and_after(join_weight_gradients, module)
        + cat_default  f16[4,8]  cat [a,c,e,g]
        + cat_default_1  f16[4,8]  cat [b,d,f,h]
        + t_default  f16[8,4]  t cat_default
        + mm_default  f16[8,8]  mm t_default cat_default_1
        + return  mm_default
        - t  f16[8,1]  t a
        - mm  f16[8,8]  mm t b
        - t_1  f16[8,1]  t c
        - mm_1  f16[8,8]  mm t_1 d
        - add  f16[8,8]  add mm mm_1
        - t_2  f16[8,1]  t e
        - mm_2  f16[8,8]  mm t_2 f
        - add_1  f16[8,8]  add add mm_2
        - t_3  f16[8,1]  t g
        - mm_3  f16[8,8]  mm t_3 h
        - add_2  f16[8,8]  add add_1 mm_3
        - return  add_2
    """
    joined: Joined = {}
    found = [last for last in sums(module.graph) if last in BACKWARD]
    done = [_join_products(last, joined) for last in found if last.meta["val"].dim() == 2]
    done += [_join_rows(last, joined) for last in found if last.meta["val"].dim() == 1]
    return sum(done)


def _join_products(last: fx.Node, joined: Joined) -> bool:
    """Replace the products among the terms of a sum by one; return whether it was done."""
    terms = _terms(last)
    products = {term: product for term in terms if (product := _product(term)) is not None}
    read = sum(count_of(node.meta["val"]) for pair in products.values() for node, _ in pair)
    if len(products) < LEAST or read >= len(products) * count_of(last.meta["val"]):
        return False
    with last.graph.inserting_before(last):
        gradients = _join(last, tuple(pair[0] for pair in products.values()), joined)
        values = _join(last, tuple(pair[1] for pair in products.values()), joined)
        whole = _call(last, _MATMUL, _call(last, _FLIP, gradients), values)
    TERMS[whole] = len(products)
    _replace(last, whole, [term for term in terms if term not in products])
    return True


def _join_rows(last: fx.Node, joined: Joined) -> bool:
    """Replace the sums of rows that a weight has joined by one; return whether it was done."""
    terms = _terms(last)
    summed = {term: rows for term in terms if (rows := _summed(term)) is not None}
    gradients = joined.get(tuple(summed.values()))
    if gradients is None:
        return False
    # Of a cell's other bias. Inductor's C++ declares a name twice for two equal sums.
    total = next((node for node in gradients.users if node.target is _SUM), None)
    if not all((total or gradients) < reader for reader in last.users):
        return False
    if total is None:
        with last.graph.inserting_after(max(gradients, last)):
            total = _call(last, _SUM, gradients, [0])
        TERMS[total] = len(summed)
    _replace(last, total, [term for term in terms if term not in summed])
    return True


def _terms(last: fx.Node) -> list[fx.Node]:
    """Return what a sum adds, in the order of the additions; nothing if a term is there twice."""
    adds = sorted(additions_of(last))
    inner = set(adds)
    terms = [item for add in adds for item in add.args if isinstance(item, fx.Node)]
    terms = [term for term in terms if term not in inner]
    return terms if len(set(terms)) == len(terms) else []


def _product(term: fx.Node) -> tuple[Rows, Rows] | None:
    """Return ``a`` and ``b`` if a term is ``a.T @ b`` and nothing else reads that."""
    node, flipped = _followed(term, alone=True)
    if node.target is not _MATMUL or len(node.users) != 1:
        return None
    left, right = (_followed(item) for item in node.args if isinstance(item, fx.Node))
    if flipped:  # (left @ right).T is right.T @ left.T
        return right, (left[0], not left[1])
    return (left[0], not left[1]), right


def _summed(term: fx.Node) -> Rows | None:
    """Return the rows that a term is the sum of if nothing else reads that."""
    node = term
    while op_name(node) in _RESHAPES and len(node.users) == 1:
        node = node.all_input_nodes[0]
    if node.target is not _SUM or len(node.users) != 1 or "dtype" in node.kwargs:
        return None
    rows, axes = node.args[:2]
    if axes != [0] or not isinstance(rows, fx.Node) or rows.meta["val"].dim() != 2:
        return None
    return _followed(rows)


def _followed(node: fx.Node, *, alone: bool = False) -> Rows:
    """Return the matrix that a node is the transpose of, through any number of transposes.

    Args:
        node: where to begin.
        alone: stop at a transpose that several nodes read.
    """
    flipped = False
    while node.target is _FLIP and not (alone and len(node.users) > 1):
        node, flipped = node.all_input_nodes[0], not flipped
    return node, flipped


def _join(last: fx.Node, rows: tuple[Rows, ...], joined: Joined) -> fx.Node:
    """Return matrices one below the other; those that another sum has joined are taken."""
    if rows not in joined:
        parts = [_call(last, _FLIP, node) if flipped else node for node, flipped in rows]
        joined[rows] = _call(last, _CAT, parts)
    return joined[rows]


def _call(last: fx.Node, target: Callable[..., Any], *args: Any) -> fx.Node:
    """Add a call that belongs to what a sum belongs to."""
    node = call(last.graph, target, *args)
    node.meta = {**last.meta, "val": node.meta["val"]}
    return node


def _replace(last: fx.Node, whole: fx.Node, others: list[fx.Node]) -> None:
    """Put a result and the other terms of a sum in its place, and erase what only the sum read."""
    place = max(whole, last)
    for term in others:
        with last.graph.inserting_after(place):
            whole = place = _call(last, _ADD, whole, term)
    last.replace_all_uses_with(whole)
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and not node.users:
            waiting += node.all_input_nodes
            node.graph.erase_node(node)
