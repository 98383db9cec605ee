"""What the numbers of a step are: measured ranges, errors beside FP64, causes of infinities.

In comes a workload or a step; out come measurements, and the ops that they point at. Nothing here
changes a plan. A new check names a planted fault of ``tests/planted`` at its node and line.
"""
