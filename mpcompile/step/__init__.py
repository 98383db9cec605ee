"""From a forward graph to a step graph: gradients, the optimizer's update, and the state between.

In come a forward graph with its casts and an optimizer; out goes a `StepGraph`. The training passes
(`mpcompile.passes.step`, `mpcompile.passes.processes`) rewrite it; `StepGraph.check` checks it.
"""
