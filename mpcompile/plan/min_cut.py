"""Minimum cut of a network with capacities of any size, by SciPy's 32-bit maximum flow."""

from __future__ import annotations

from collections.abc import Hashable

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_LARGEST = 2**30 - 1
"""The largest capacity: SciPy adds two numbers of this size in 32 bits."""

Integers = NDArray[np.int64]


def source_side(network: nx.DiGraph, source: Hashable, sink: Hashable) -> set[Hashable]:
    """Return the source's side of a minimum cut; of several cuts, the largest such side.

    This side is the same for every maximum flow: the nodes from which the sink cannot be reached
    in the residual network. So it does not depend on the order of nodes and edges.

    Args:
        network: ``capacity`` on its edges is a non-negative integer of any size up to 2**62 in
            sum; an edge without one is infinite. No path of infinite edges joins source and sink.
        source: a node that no edge enters.
        sink: a node that no edge leaves.
    """
    names = list(network)
    number = {name: index for index, name in enumerate(names)}
    edges = [
        (number[tail], number[head], capacity)
        for tail, head, capacity in network.edges(data="capacity")
    ]
    infinite = 1 + sum(capacity for _, _, capacity in edges if capacity is not None)
    tails = np.fromiter((tail for tail, _, _ in edges), np.int64, len(edges))
    heads = np.fromiter((head for _, head, _ in edges), np.int64, len(edges))
    sizes = np.fromiter(
        (infinite if size is None else size for _, _, size in edges), np.int64, len(edges)
    )
    whole = _with_reverse_edges(tails, heads, sizes, len(names))
    rest = _residual(whole, number[source], number[sink])
    reversed_rest = csr_array((rest.data > 0, rest.indices, rest.indptr), rest.shape).T.tocsr()
    reversed_rest.eliminate_zeros()
    reach = breadth_first_order(reversed_rest, number[sink], return_predecessors=False)
    return set(names) - {names[index] for index in reach}


def _with_reverse_edges(tails: Integers, heads: Integers, sizes: Integers, count: int) -> csr_array:
    """Return the capacities as a matrix that stores an entry for each edge and its reverse."""
    both = (np.concatenate([tails, heads]), np.concatenate([heads, tails]))
    data = np.concatenate([sizes, np.zeros_like(sizes)])
    matrix = csr_array((data, both), (count, count))
    matrix.sum_duplicates()
    return matrix


def _residual(capacity: csr_array, source: int, sink: int) -> csr_array:
    """Return the rest of each capacity after a maximum flow.

    The method is scaling. A maximum flow of the leading bits of the capacities, times a power of
    two, is a flow of the capacities with that many more bits. It lacks less than this power per
    edge. The missing flow fits 32 bits again, if each capacity is limited to it.
    """
    edges = max(1, len(capacity.data))
    step = (_LARGEST // edges).bit_length() - 1
    shift = max(0, int(capacity.data.max(initial=0)).bit_length() - _LARGEST.bit_length())
    shift = -(-shift // step) * step
    flow = np.zeros_like(capacity.data)
    missing = _LARGEST
    while True:
        rest = np.minimum((capacity.data >> shift) - flow, missing).astype(np.int32)
        found = maximum_flow(
            csr_array((rest, capacity.indices, capacity.indptr), capacity.shape), source, sink
        ).flow
        found.sort_indices()
        flow += found.data
        if shift == 0:
            return csr_array(
                (capacity.data - flow, capacity.indices, capacity.indptr), capacity.shape
            )
        shift -= step
        flow <<= step
        missing = min(_LARGEST, edges << step)
