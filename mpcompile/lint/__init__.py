"""Find in a program what goes wrong, or slows down, in 16 bits; each finding with its fix.

In comes a planned program as rows that are the same for torch and ONNX (`program`); out go
findings. A new rule is a row of `rules`, a function, and a page in ``docs/lint``.
"""
