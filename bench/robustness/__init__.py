"""What happens if a run is killed, an input file is damaged, or torch is another version?"""
