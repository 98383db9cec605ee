"""From a user's file to a forward graph: load, capture, describe to the planner.

In comes a `Workload`: model, loss, optimizer, batch. out go a functional FX graph (`capture`) and
its `Dataflow` rows (`describe`). All code that depends on how people write PyTorch belongs here.
"""
