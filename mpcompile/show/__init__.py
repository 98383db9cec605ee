"""A program, an ONNX model or a plan as a person looks at it: rows, tables, text, one HTML page.

In comes whatever has a plan; out goes a `View`, rows that are the same for torch and ONNX, and what
is made of them. A new way to show a graph reads a `View` and nothing else.
"""
