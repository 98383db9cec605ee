"""The least time of a step, and its measured time.

The room takes a step graph or a workload. It gives floating-point operations, the least time on a
device, and measured times next to PyTorch's. A new device is one row in `devices`.
"""
