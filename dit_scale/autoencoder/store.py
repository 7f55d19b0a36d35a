"""Autoencoders found by name, and kept.

Whatever its kind, an autoencoder is kept as one file, ``autoencoder.safetensors``, beside the shards it made and
in the run folders that learnt from them, so that decoding later needs no network and no other folder.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dit_scale.autoencoder.base import NO_AUTOENCODER, Autoencoder, Identity
from dit_scale.autoencoder.convolutional import ConvAutoencoder, load_convolutional, model_class_of
from dit_scale.autoencoder.pca import PCACodec
from dit_scale.documents import parsed
from dit_scale.errors import InputError
from dit_scale.files import atomic_write
from dit_scale.weights import load_strictly, pretrained

FILE_NAME = "autoencoder.safetensors"
"""What an autoencoder is kept as, in a shard folder or a run folder."""

_KEY = "autoencoder"


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Write ``autoencoder.safetensors`` into a folder."""
    description = json.dumps({"identity": autoencoder.identity, "settings": autoencoder.settings()}, sort_keys=True)
    with atomic_write(folder / FILE_NAME) as file:
        # One entry, since several would come in any order and the file with them.
        file.write(save(autoencoder.tensors(), {_KEY: description}))


def load_autoencoder(
    which: str | Identity,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    revision: str | None = None,
    or_else: str = "",
) -> Autoencoder:
    """Return an autoencoder by its name, or the one with this identity (a manifest's) that ``folder`` keeps.

    A name is a hub name, a local folder of a diffusers autoencoder, or a folder with ``autoencoder.safetensors``.
    An identity without a SHA-256, of one that was not at hand, is loaded by its name. ``or_else`` is what the caller
    may take instead, for the sentence that refuses a name.
    """
    if which == NO_AUTOENCODER:
        raise InputError(
            "the model was imported without an autoencoder, which turns its latents into images; give the one that it "
            "was trained with: dit-scale sample --decoder NAME, or dit-scale import --autoencoder NAME"
        )
    if not isinstance(which, str) and which["sha256"] is None:
        which = str(which["name"])
    if not isinstance(which, str):
        if folder is None:
            raise TypeError("an autoencoder is found by its identity in a folder; give folder")
        return _read(folder / FILE_NAME, which, precision).to(device)
    if (Path(which) / FILE_NAME).is_file():
        return _read(Path(which) / FILE_NAME, None, precision).to(device)
    if which == PCACodec.KIND and not Path(which).is_dir():
        raise InputError(
            f"autoencoder '{which}' is fitted on images by dit-scale encode, which keeps it beside the shards; give "
            f"the folder with its {FILE_NAME}: a shard folder, or the folder 'autoencoder' of a run"
        )
    return load_convolutional(which, revision, precision, or_else).to(device)


def copy_decoder(identity: Identity, source: Path, target: Path) -> None:
    """Copy what decoding needs from a shard folder to a run folder, unless it is there already."""
    if (target / FILE_NAME).is_file() and _describe(target / FILE_NAME)["identity"] == identity:
        return
    target.mkdir(parents=True, exist_ok=True)
    with (source / FILE_NAME).open("rb") as original, atomic_write(target / FILE_NAME) as copy:
        shutil.copyfileobj(original, copy, 1 << 20)


def _read(path: Path, expected: Identity | None, precision: Literal["fp32", "bf16"]) -> Autoencoder:
    """Build the autoencoder that a file keeps; its weights must have the SHA-256 that identifies it."""
    description = _describe(path)
    identity, settings = description["identity"], description["settings"]
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    autoencoder: Autoencoder
    if identity["kind"] == PCACodec.KIND:
        autoencoder = PCACodec(**tensors, **settings)
    else:
        with pretrained(f"'{path}'", "copy the file again from the shard folder"):
            model = model_class_of(identity["kind"], str(path)).from_config(settings)
        load_strictly(model, tensors, str(path), "copy the file again from the shard folder")
        autoencoder = ConvAutoencoder(model, identity["name"], identity["revision"], precision)
    wanted = identity if expected is None else expected
    if autoencoder.identity != wanted:
        raise InputError(
            f"'{path}' holds autoencoder '{identity['name']}' with weights {autoencoder.identity['sha256'][:12]}, not "
            f"'{wanted['name']}' with {wanted['sha256'][:12]}; put back the file that belongs to these latents, "
            f"or their own manifest"
        )
    return autoencoder


class _Identity(TypedDict):
    kind: str
    name: str
    revision: str | None
    sha256: str | None


class _Description(TypedDict):
    identity: _Identity
    settings: dict[str, Any]


def _describe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"'{path}' is missing; copy it from the shard folder, where dit-scale encode wrote it")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if _KEY not in metadata:
            raise ValueError(f"expected a description under '{_KEY}' in its metadata, found none")
        return cast(dict[str, Any], parsed(metadata[_KEY], _Description))
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"'{path}' is not a whole autoencoder file ({error}); copy it from the shards again"
        ) from error
