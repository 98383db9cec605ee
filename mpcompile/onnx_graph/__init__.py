"""An ONNX graph as data: read and written, its types, its ids, what the planner sees of it."""
