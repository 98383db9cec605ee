"""Planted faults: programs, ONNX files and texts that mpcompile must find or refuse."""
