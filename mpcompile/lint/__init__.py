"""Find the parts of a program that go wrong or slow down in 16 bits, each with a fix.

The input is a planned program as rows, in one form for torch and ONNX (`program`). The output is
findings. A new rule needs a row of `rules`, a function, and a page in ``docs/lint``.
"""
