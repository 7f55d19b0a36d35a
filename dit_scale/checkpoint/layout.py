"""What a checkpoint folder holds, by name, and its manifest."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from dit_scale.errors import InputError
from dit_scale.files import write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
_NAME = re.compile(r"step-\d{8,}")
"""Of a checkpoint; a copy under another name is its owner's."""


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int = 0
    images_seen: int = 0


@dataclass(frozen=True)
class Description:
    """What a checkpoint is of: enough to resume, to sample, or to refuse with a reason."""

    position: Position
    config: dict[str, Any]
    """The run's resolved configuration."""
    data: dict[str, Any]
    """Fingerprint of the shards, latent spec, class names and autoencoder."""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of this step by which checkpoints are compared: a validation loss, …"""
    grad_norms: list[float] = field(default_factory=list)
    """Of the latest updates: what a spike is measured against."""


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint folder's name tells of."""
    return int(folder.name.removeprefix("step-"))


def newest_first(checkpoints: Path) -> list[Path]:
    """Return the checkpoint folders of a run, whole or damaged."""
    return sorted((path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` with a digest of itself."""
    manifest = {"format_version": FORMAT_VERSION} | manifest
    write_json(folder / MANIFEST, manifest | {"digest": _digest(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest; raises ValueError where it was changed, InputError for another format."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "older"
        raise InputError(
            f"checkpoint '{folder}' has format {version}, {age} than the {FORMAT_VERSION} that this dit_scale reads; "
            f"use the dit_scale that wrote it"
        )
    if manifest.pop("digest", None) != _digest(manifest):
        raise ValueError(f"{MANIFEST} does not fit its digest")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(manifest))  # as it reads back
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())


def file_digest(path: Path) -> str:
    """Return the xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
