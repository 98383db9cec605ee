"""Rewrites of the step graph for many processes."""
