"""Is a 16-bit ONNX model valid, right and fast, beside other converters and PyTorch?

Also whether our table of the kernels of ONNX Runtime is true for the installed version.
"""
