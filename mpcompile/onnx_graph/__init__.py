"""An ONNX graph as data: read and written, its types, its ids, what the planner sees of it.

In comes a file that may come from anyone, through one gate (`gate`); out go a checked model and its
`Dataflow` rows (`describe`). Nothing here runs a model.
"""
