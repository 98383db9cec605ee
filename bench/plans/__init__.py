"""How many casts and bytes does a plan cost, beside autocast and a greedy painting?

Everything here counts on recorded graphs; nothing runs and nothing is timed.
"""
