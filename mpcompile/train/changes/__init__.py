"""What of a program may change between two calls of its step, and how a call notices it.

In comes what the walk over a program has found; out come its situation, which graphs are made for,
and a guard that says before each call whether it still holds.
"""
