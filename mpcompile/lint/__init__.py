"""Find in a program what goes wrong, or slows down, in 16 bits; each finding with its fix."""
