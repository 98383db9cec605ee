"""How many bytes does training hold, between forward and backward and on each process?"""
