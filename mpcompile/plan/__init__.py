"""From a policy to a plan: which op runs in which precision, and where the casts are.

In come a `Dataflow`, rows without torch or ONNX objects, and a `Policy`; out goes a `Plan` in which
each decision has its reason. A new op is a row of `op_table`. A new safety rule is a function from
`Dataflow` to `Dataflow`; the minimum cut in `planner` does not change for it.
"""
