"""Which models of other people's libraries train, and how far from FP32?"""
