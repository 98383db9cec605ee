"""Show a program, an ONNX model or a plan to a person: rows, tables, text, one HTML page.

The input is anything with a plan. It becomes a `View`, rows in one form for torch and ONNX, and all
outputs are made from it. A new way to show a graph must read a `View` and nothing else.
"""
