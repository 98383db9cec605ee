"""Rewrites of the gradient graph: what is kept for backward."""
