"""Rewrites of the step graph: master weights, gradients, loss scale, the gate of the update."""
