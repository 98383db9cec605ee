"""A graph as a person looks at it: read from a program, an ONNX model or a plan, and explained."""
