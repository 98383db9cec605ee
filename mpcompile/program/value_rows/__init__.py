"""A torch graph as rows for the analysis of bounds (`mpcompile.plan.bounds`).

In: the captured forward graph and the values of its constants. Out: a `Step` for each node, and
the ranges of indices. A newcomer may add an op whose arguments need an own reading.
"""
