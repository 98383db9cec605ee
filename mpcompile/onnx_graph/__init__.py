"""An ONNX graph as data: reading, writing, types, ids, and its description for the planner.

In comes an untrusted file, through one gate (`gate`); out go a checked model and its `Dataflow`
rows (`describe`). Nothing here runs a model.
"""
