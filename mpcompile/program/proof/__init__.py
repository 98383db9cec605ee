"""Proof that a captured graph does what the program does.

In come a `Workload` and its `Forward`; out goes nothing if they agree, else an error with the first
difference. It also finds what a program reads and changes beside its tensors.
"""
