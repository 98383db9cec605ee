"""What results are compared with: FP64 and eager autocast, simulated processes, cuDNN on a CPU."""
