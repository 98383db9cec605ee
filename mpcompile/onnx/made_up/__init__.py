"""Make up inputs for a model that comes without data.

In comes a model; out come batches on which it runs (`trials`). The numbers of a batch are random,
in ranges and sizes that the graph tells.
"""
