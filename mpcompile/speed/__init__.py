"""How fast a step can be, and how fast it is.

In comes a step graph or a workload; out go floating-point operations, the least time on a device,
and measured times beside PyTorch's ways. A new device is a row of `devices`.
"""
