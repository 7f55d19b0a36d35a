"""What tells a reader how images came to be, and whether a folder's images are those that are asked for."""

import json
from pathlib import Path
from typing import Any, TypedDict

from dit_scale.documents import read_document
from dit_scale.errors import InputError, few
from dit_scale.files import write_json

PROTOCOL = "protocol.json"

_MAY_DIFFER = ("num_samples", "versions")
"""Images that are there stay as they are when more are asked for, or after an upgrade, which the reader is told."""


class _Count(TypedDict):
    num_samples: int


def read_protocol(folder: Path, fix: str, shape: Any = dict[str, Any]) -> dict[str, Any] | None:
    """Return what a folder says of its images, or None where it says nothing; InputError with ``fix`` for damage."""
    path = folder / PROTOCOL
    return read_document(path, shape, "a protocol of samples", fix) if path.is_file() else None


def begin_or_go_on(folder: Path, protocol: dict[str, Any]) -> None:
    """Write the protocol before the first image; raises InputError where images of another one are there."""
    before = read_protocol(folder, "give another --out, or --overwrite", _Count)
    if before is None and any((folder / "images").glob("*.png")):
        raise InputError(f"'{folder}' holds images without a {PROTOCOL}; give another --out, or --overwrite")
    for key in sorted(protocol.keys() | (before or {}).keys()):
        if before is not None and key not in _MAY_DIFFER and before.get(key) != protocol.get(key):
            raise InputError(
                f"'{folder}' holds images of another protocol: {key} was {_shown(before.get(key))} and is "
                f"{_shown(protocol.get(key))}; give another --out, or --overwrite"
            )
    if before is not None and before["num_samples"] > protocol["num_samples"]:
        raise InputError(
            f"'{folder}' holds {before['num_samples']} images, more than --num-samples {protocol['num_samples']}, and "
            f"whoever scores it would count them all; give another --out, or --overwrite"
        )
    write_json(folder / PROTOCOL, protocol)


def _shown(value: object) -> str:
    """Return a value for a sentence, a long list cut short."""
    return f"[{few(map(json.dumps, value))}]" if isinstance(value, list) else json.dumps(value)
