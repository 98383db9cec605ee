"""A captured graph without mutation: no op writes to a tensor, and each op has a derivative.

In comes what `torch.export` gives; out comes the graph that is planned. A newcomer may add an op
that torch cannot run or differentiate on tensors without values to the table in `instead`.
"""
