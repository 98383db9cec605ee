"""Rewrites of a step graph that leaves without the optimizer and without other steps."""
