"""Measurements of a step's numbers: ranges, errors against FP64, causes of infinities.

In comes a workload or a step; out come measurements, and the ops that they point at. This room
never changes a plan. A new check must find a planted fault of ``tests/planted`` at its node and
line.
"""
