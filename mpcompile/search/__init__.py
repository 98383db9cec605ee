"""Trials that find the few ops to blame: `tune`, and `reduce` to the smallest failing part.

In come a workload and what must hold of its step; out goes the smallest set of ops, or a script
that needs torch alone. Searches ask the step itself, so a new judge is a function in `judges`.
"""
