"""Graphs that Dynamo makes of a program, and programs that run in pieces because of its breaks.

In comes one graph of Dynamo, or a program that cannot become one graph; out comes the same with the
plan's casts. A newcomer may change what is said about a break.
"""
