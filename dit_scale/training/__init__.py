"""The training run: one step, the loop around it, and what it leaves on disk."""
