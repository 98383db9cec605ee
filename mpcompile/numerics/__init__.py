"""Measurements of a step's numbers: ranges, errors against FP64, causes of infinities.

The room takes a workload or a step, and gives measurements and the ops that they point at. It never
changes a plan. A new check must find a planted fault of ``tests/planted`` at its node and line.
"""
