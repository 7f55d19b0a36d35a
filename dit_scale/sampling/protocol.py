"""What tells a reader how images came to be, and whether a folder's images are those that are asked for."""

import json
from pathlib import Path
from typing import Any

from dit_scale.errors import InputError, shown
from dit_scale.files import write_json

PROTOCOL = "protocol.json"

_MAY_DIFFER = ("num_samples", "versions")
"""Images that are there stay as they are when more are asked for, or after an upgrade, which the reader is told."""


def read_protocol(folder: Path) -> dict[str, Any] | None:
    """Return what a folder says of its images, or None where it says nothing; InputError where it is not readable."""
    path = folder / PROTOCOL
    if not path.is_file():
        return None
    try:
        protocol = json.loads(path.read_text())
        if isinstance(protocol, dict):
            return protocol
    except ValueError:
        pass
    raise InputError(f"'{path}' is not a protocol of samples; give another --out, or --overwrite")


def begin_or_go_on(folder: Path, protocol: dict[str, Any]) -> None:
    """Write the protocol before the first image; raises InputError where images of another one are there."""
    before = read_protocol(folder)
    if before is None and any((folder / "images").glob("*.png")):
        raise InputError(f"'{folder}' holds images of which no {PROTOCOL} tells; give another --out, or --overwrite")
    for key in sorted(protocol.keys() | (before or {}).keys()):
        if before is not None and key not in _MAY_DIFFER and before.get(key) != protocol.get(key):
            raise InputError(
                f"'{folder}' holds images of another protocol: {key} was {shown(before.get(key))} and is "
                f"{shown(protocol.get(key))}; give another --out, or --overwrite"
            )
    if before is not None and before["num_samples"] > protocol["num_samples"]:
        raise InputError(
            f"'{folder}' holds {before['num_samples']} images, more than --num-samples {protocol['num_samples']}, and "
            f"whoever scores it would count them all; give another --out, or --overwrite"
        )
    write_json(folder / PROTOCOL, protocol)
