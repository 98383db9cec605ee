"""The parts of a run besides its steps: progress bar, checkpoints, signals that end it."""
