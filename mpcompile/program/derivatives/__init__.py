"""The derivatives that a program writes itself: custom autograd Functions and hooks.

In: the program while it is captured. Out: nodes of the forward graph (`own_backward`) whose
derivative is the user's code. A newcomer adds a way to write a derivative in `noted`.
"""
