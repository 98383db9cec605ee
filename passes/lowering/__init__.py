"""Rewrites right before a graph runs, for the device that runs it."""
