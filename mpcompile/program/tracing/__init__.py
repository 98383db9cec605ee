"""How a program is run while `torch.export` traces it, and what stands in for parts of it.

In comes a `Workload`; out comes an exported program, or the one sentence that says why there is
none. A newcomer may add a stand-in for a function of torch that cannot be traced.
"""
