"""What happens if a run is killed or an input file is damaged?"""
