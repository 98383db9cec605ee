"""An ONNX graph as data: reading, writing, types, ids, and its description for the planner.

Input: an untrusted file, read through one gate (`gate`). Output: a checked model and its
`Dataflow` rows (`describe`). Nothing here runs a model.
"""
