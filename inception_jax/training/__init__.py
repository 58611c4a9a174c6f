"""Training: the state, the step, its compilation on many devices, and the loop (start with `loop.py`)."""
