"""The rewrites, one a file, in rooms by the graph that they rewrite.

In comes a graph, out comes the number of changes; `order` says in which order the passes run on a
program of torch, with the reason for each place. A new pass is one file here, one test and one line
there.
"""
