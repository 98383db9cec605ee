"""References for results: FP64, eager autocast, simulated processes, cuDNN on a CPU."""
