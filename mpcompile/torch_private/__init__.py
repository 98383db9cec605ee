"""Every touch of torch that is not public API, each with what it is needed for.

In come graphs, tensors and functions; out come what only private names of torch can make of them.
Checked on torch 2.11 and 2.13. Nothing outside this room imports from a torch package or reads a
torch attribute whose name starts with an underscore, or from ``torch.fx.experimental``. `inductor`
is a module of its own because importing it takes seconds.
"""
