"""What a run is besides its steps: a progress bar, checkpoints, and signals that end it."""
