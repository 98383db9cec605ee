"""The rewrites, one a file, in rooms by the graph that they rewrite.

In comes a graph, out comes the number of changes; `order` says in which order the passes run on a
program of torch, with the reason for each place. A new pass is one file here, one test and one line
there. Each has an example in its docstring: the lines of the graph's text that it removes (-) and
adds (+), written with `tests/programs/pass_examples.py`. What passes tell each other on nodes is in
`mpcompile.program.marks`; what each may rely on is in `invariants`.
"""
