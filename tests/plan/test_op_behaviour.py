"""The op table against what autograd keeps and what inductor makes of each op."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from programs.op_samples import Sample, samples
from torch._inductor import lowering
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_iter, tree_map, tree_unflatten

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import PrecisionClass
from mpcompile.torch_private.versions import release


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# The row says more than the samples show.
SAVES_OTHERWISE: dict[str, str] = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"), "cuDNN keeps the output; a CPU takes it apart"
    ),
    **dict.fromkeys(
        ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), "as the layer made of them"
    ),
    "aminmax": "torch 2.11 keeps nothing",
    "nextafter": "torch 2.13 keeps the input for a derivative that is 1 or 0",
    "linalg_eig": "keeps complex results",
    "linalg_eigvals": "keeps complex results",
    "linalg_svd": "one sample has no derivative",
}

# What autograd kept before the version of torch from which the row is right.
KEPT_BEFORE: dict[str, tuple[tuple[int, int], str]] = {
    "quantile": ((2, 14), ""),
    "nanquantile": ((2, 14), ""),
    "combinations": ((2, 14), "in"),
    **{
        f"special_{kind}_{order}": ((2, 15), "")
        for kind, orders in (("bessel", "j0 j1 y0 y1"), ("modified_bessel", "i0 i1 k0 k1"))
        for order in orders.split()
    },
}


def observed(name: str) -> set[str] | None:
    """Return which of input and output autograd keeps, over all samples; None without any."""
    seen = [kept for sample in samples(name, 24) if (kept := _kept(sample)) is not None]
    return set().union(*seen) if seen else None


def _kept(sample: Sample) -> set[str] | None:
    try:
        return _kept_of(sample, lambda _: True)
    except RuntimeError:  # some argument has no derivative: the first one alone
        try:
            return _kept_of(sample, lambda position: position == 0)
        except RuntimeError:
            return None


def _kept_of(sample: Sample, wanted: Callable[[int], bool]) -> set[str] | None:
    inputs: list[torch.Tensor] = []
    kept: set[int] = set()
    alive: list[torch.Tensor] = []

    def prepare(value: Any) -> Any:
        if not _is_full(value):
            return value
        inputs.append(value.detach().clone().requires_grad_(wanted(len(inputs))))
        return inputs[-1]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _is_full(tensor):
            kept.add(_memory(tensor))
            alive.append(tensor)
        return tensor

    args, kwargs = tree_map(prepare, (sample.args, sample.kwargs))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = [value for value in tree_iter(sample.call(args, kwargs)) if _is_full(value)]
    read = {_memory(tensor) for tensor in inputs}
    if not read or not any(result.requires_grad for result in results):
        return None
    # The first result is what the op is for; the others are statistics and factors.
    main = {_memory(results[0])} - read
    return ({"in"} if kept & read else set()) | ({"out"} if kept & main else set())


def _is_full(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32 and value.numel() > 0


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_rows_say_what_autograd_keeps() -> None:
    proven, wrong = 0, {}
    for name, rule in TORCH_RULES.items():
        if not hasattr(torch.ops.aten, name) or name in SAVES_OTHERWISE:
            continue
        kept = observed(name)
        if kept is None:
            continue
        proven += 1
        first, before = KEPT_BEFORE.get(name, ((0, 0), ""))
        if kept != set((rule.saves if release(torch.__version__) >= first else before).split()):
            wrong[name] = f"row: {rule.saves!r}, autograd: {sorted(kept)}"
    assert wrong == {}
    assert proven > 450


# Names of ATen ops that a decomposition ends in, though inductor replaces them later.
DRAWN = frozenset({"rand", "randn", "bernoulli"})
DECOMPOSITIONS = select_decomp_table()
BY_INDEX = frozenset(
    "index _unsafe_index index_put _unsafe_index_put gather scatter scatter_add scatter_reduce "
    "embedding sort _unsafe_masked_index _unsafe_masked_index_put_accumulate".split()
)
STREAMS_OTHERWISE: dict[str, str] = {
    "group_norm": "one sample is not contiguous",
    "native_group_norm": "one sample is not contiguous",
    "norm": "only the nuclear norm is a library call",
    "max_pool3d_with_indices": "the usual window of 27 is a library call",
    "fractional_max_pool2d": "reads by index, drawn at random",
    "fractional_max_pool3d": "reads by index, drawn at random",
    "linalg_matrix_norm": "only some norms are library calls",
    "linalg_matrix_power": "only some exponents are library calls",
    "matrix_power": "only some exponents are library calls",
    "repeat_interleave": "only a number of repeats for each row is a library call",
    "kthvalue": "a library call on torch 2.11",
    "median": "a library call on torch 2.11",
    "mode": "a library call on torch 2.11",
    "topk": "a library call on torch 2.11",
    "adaptive_max_pool3d": "a library call on torch 2.11",
}


def in_memory(name: str) -> tuple[set[str], set[str]] | None:
    """Return the library calls and the reads by index that an op becomes; None if unknown."""
    calls: set[str] = set()
    indexed: set[str] = set()
    known = False
    for sample in samples(name, 2):
        try:
            graph = _decomposed(sample)
        except (RuntimeError, TypeError, NotImplementedError, ValueError):
            continue
        known = True
        for node in graph.nodes:
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            called = node.target.overloadpacket.__name__
            if called in DRAWN or called.endswith("_"):
                continue
            if (
                node.target in lowering.fallbacks
                or node.target in lowering.needs_realized_inputs
                or node.target not in lowering.lowerings
            ):
                calls.add(called)
            elif called in BY_INDEX:
                indexed.add(called)
    return (calls, indexed) if known else None


def _decomposed(sample: Sample) -> torch.fx.Graph:
    values, spec = tree_flatten((sample.args, sample.kwargs))
    places = [place for place, value in enumerate(values) if isinstance(value, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        filled = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return sample.call(*tree_unflatten(filled, spec))

    with torch.no_grad():
        traced = make_fx(function, decomposition_table=DECOMPOSITIONS)
        return traced(*[values[place] for place in places]).graph


def test_rows_say_what_inductor_makes_a_loop_of() -> None:
    proven, wrong = 0, {}
    for name, rule in TORCH_RULES.items():
        if (
            not hasattr(torch.ops.aten, name)
            or name in STREAMS_OTHERWISE
            or rule.precision_class is PrecisionClass.UNTOUCHABLE
        ):
            continue
        if rule.precision_class is PrecisionClass.TENSOR_CORE:
            assert not rule.streams
            continue
        found = in_memory(name)
        if found is None:
            continue
        proven += 1
        calls, indexed = found
        if calls if rule.streams else not calls | indexed:
            wrong[name] = f"row: streams={rule.streams}, inductor: {sorted(calls | indexed)}"
    assert wrong == {}
    assert proven > 500
