"""Does a compiled step ever differ from its program without a word?

`parts` are what random programs are made of, `changes` happen to them between two calls, and
`campaign` trains each beside eager PyTorch.
"""
