"""Rewrites of the gradient graph: they choose the tensors that are kept for backward."""
