"""The least time of a step, and its measured time.

In comes a step graph or a workload; out come floating-point operations, the least time on a device,
and measured times next to PyTorch's. A new device is one row in `devices`.
"""
