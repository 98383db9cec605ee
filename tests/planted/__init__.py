"""Planted faults: programs, ONNX files and texts that something has to find or refuse."""
