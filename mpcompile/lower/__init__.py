"""From a step graph to something that runs: FX code or inductor, and one CUDA graph.

In comes a `StepGraph`; out come two callables, one for each of its graphs. What runs is decided
here and in `mpcompile.passes.lowering`, what is computed is not: a change here must not change a
number.
"""
