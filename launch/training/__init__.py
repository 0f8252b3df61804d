"""One training: the loop, a step, what surrounds them, and what a checkpoint holds."""
