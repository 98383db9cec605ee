"""`TrainStep`, which a user calls with a batch, and the state behind it.

The room takes the callables of `mpcompile.lower`, and the user's model and optimizer, whose tensors
become views of the step's arenas. It gives losses, updated weights and checkpoints. It also decides
what a user may do between two calls.
"""
