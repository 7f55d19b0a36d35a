"""Ranks and the DeepSpeed engine; nothing else in dit_scale knows an environment variable of a launcher."""
