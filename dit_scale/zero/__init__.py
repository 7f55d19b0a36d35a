"""The DeepSpeed engine: all that knows DeepSpeed, its configuration and its insides, is in this package.

Written for DeepSpeed 0.19.8; `docs/dependencies.md` lists the private names, `tests/distributed` holds them to it.
"""
