"""`TrainStep`, which a user calls with a batch, and the state behind it.

In come the callables of `mpcompile.lower`, and the user's model and optimizer, whose tensors become
views of the step's arenas; out come losses, updated weights and checkpoints. This room also decides
what a user may do between two calls.
"""
