"""Mixed precision inside the programs of others: `torch.compile`, `torch.export`, pipelines.

In comes a graph that somebody else has captured; out goes the same graph with the plan's casts.
Autograd, optimizer and loss scale stay with the caller.
"""
