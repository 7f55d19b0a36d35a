"""Encoding as its tests call it."""

from pathlib import Path

from dit_scale.config import EncodeConfig, load_config
from dit_scale.data.manifest import Manifest
from preprocessing.encode import encode

ROOT = Path(__file__).parents[2]
COUNTS = {"ant": 13, "bee": 9, "cow": 15}
PCA = ["autoencoder.name=pca", "autoencoder.pca_channels=6"]
FITTED = ["autoencoder.name=fitted", "autoencoder.fit_channels=6", "autoencoder.fit_steps=4"]
COMMON = ["image_size=32", "shard_records=8", "batch_size=3", "decode_workers=0"]


def encode_settings(source: Path, output: Path, *more: str) -> list[str]:
    return [f"source.path={source}", f"output={output}", *COMMON, *more]


def encoded(source: Path, output: Path, *more: str) -> Manifest:
    manifest = encode(load_config(EncodeConfig, None, encode_settings(source, output, *more)))
    assert manifest is not None
    return manifest


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file that a reader uses."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "encode.jsonl"}
