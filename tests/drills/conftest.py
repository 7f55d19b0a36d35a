"""The fixtures of the end-to-end tests."""

from tests.end_to_end.conftest import images, shards, uninterrupted

__all__ = ["images", "shards", "uninterrupted"]
