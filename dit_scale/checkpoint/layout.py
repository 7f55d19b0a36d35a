"""What a checkpoint folder holds, by name, and its manifest."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import xxhash

from dit_scale.documents import fitted, parsed
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


class _Version(TypedDict):
    format_version: int


class _Position(TypedDict):
    step: int
    images_seen: int


class _File(TypedDict):
    bytes: int
    xxh3_128: str


class _Manifest(TypedDict):
    position: _Position
    adam_step: int
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    metrics: NotRequired[dict[str, float]]
    grad_norms: NotRequired[list[float]]
    parameters: dict[str, list[int]]
    files: dict[str, _File]
    content_digests: dict[str, dict[str, str]]


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
    """Return the manifest; raises ValueError for one that is none or was changed, InputError for another format."""
    manifest: Any = parsed((folder / MANIFEST).read_bytes(), _Version)
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "older"
        raise InputError(
            f"checkpoint '{folder}' has format {version}, {age} than the {FORMAT_VERSION} that this dit_scale reads; "
            f"use the dit_scale that wrote it"
        )
    if manifest.pop("digest", None) != _digest(manifest):
        raise ValueError("it does not fit its own digest, so it was changed after it was written")
    return fitted(manifest, _Manifest)


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
