"""Programs that make the pictures in the docs; they measure nothing."""
