"""Sums of thousands of 16-bit terms: programs that have them as gradients, and kernels."""
