"""How long does a person wait before the first step, and for a tool on a large graph?

Capture, planning, compiling and the reports, and how their time grows with the number of ops.
"""
