"""Python numbers of a program: formulas of them, and numbers that are inputs of a graph.

In come the places of numbers that change; out come the 0-d inputs that a captured graph reads in
their place, and how to compute them before a call.
"""
