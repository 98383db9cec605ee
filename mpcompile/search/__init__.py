"""Searches by trials: `tune` finds the few ops to blame, `reduce` the smallest failing part.

In come a workload and a requirement on its step; out comes the smallest set of ops, or a script
that needs only torch. Each trial runs the step itself, so a new judge is one class in `judges`.
"""
