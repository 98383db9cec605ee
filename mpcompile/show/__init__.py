"""Show a program, an ONNX model or a plan to a person: rows, tables, text, one HTML page.

In come programs, models and plans; out come a `View`, rows in one form for torch and ONNX, and all
texts and pages that are made from it. A new way to show a graph must read only a `View`.
"""
