"""Latents on disk: their byte layout, the order in which they are read, and batches of them."""
