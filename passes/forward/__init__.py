"""Rewrites of the forward graph: casts, and matmuls in shapes that a Tensor Core likes."""
