"""From a step graph to something that runs: FX code or inductor, and one CUDA graph.

In comes a `StepGraph`; out come two callables, one for each of its graphs. This room and
`mpcompile.passes.lowering` decide how a step runs, not what it computes: a change here must not
change a number.
"""
