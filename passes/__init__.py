"""The rewrites, one a file, in rooms by the graph that they rewrite.

In comes a graph, out comes the number of changes. `order` says in which order the passes run on a
program of torch, and why. A new pass is one file here, one test and one line there. Each pass
has an example in its docstring: the lines of the graph's text that it removes (-) and adds (+),
written with `tests/programs/pass_examples.py`. Passes leave notes for each other on nodes: see
`mpcompile.program.marks`. `invariants` lists the facts that each pass may rely on.
"""
