"""How fast is a training step, beside eager PyTorch, autocast and `torch.compile`?

Every peer runs on the same machine as our step, and the result is a ratio.
"""
