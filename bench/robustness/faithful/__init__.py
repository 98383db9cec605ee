"""Does a compiled step ever differ from its program without a word? Random programs, in FP32.

    python -m bench.robustness.faithful [--count 20000] [--seed 0] [--only NUMBER]

`parts` are what the programs are made of, `changes` what happens to them between two calls, and
`campaign` trains each beside eager PyTorch.
"""
